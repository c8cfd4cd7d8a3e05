"""Proof that an artefact is right: its accuracy, its parity with the checkpoint, and IWP beside other methods."""
