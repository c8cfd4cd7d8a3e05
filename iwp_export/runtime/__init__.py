"""Running a bundle: sessions, processor, generation. Needs no torch."""
