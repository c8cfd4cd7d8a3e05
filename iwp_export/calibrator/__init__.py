"""Pruning settings found on the user's own images."""
