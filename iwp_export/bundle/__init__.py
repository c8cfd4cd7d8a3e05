"""The exported artefact: manifest and store. Needs no torch."""
