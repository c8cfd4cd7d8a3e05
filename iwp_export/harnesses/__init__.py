"""Bundles and engines as models of other projects' evaluation harnesses."""
