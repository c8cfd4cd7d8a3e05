"""The torch reference. The only part of the runtime side that needs torch."""
