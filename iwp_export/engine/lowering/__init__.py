"""Passes that turn a bundle's portable graph into what a TensorRT takes; each keeps the graph's results."""
