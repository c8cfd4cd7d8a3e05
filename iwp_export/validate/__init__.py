"""Proof that an artefact is right: references to compare with, and the comparisons."""
