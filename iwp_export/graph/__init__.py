"""Transforms of ONNX graphs and weights that stream from a checkpoint. Needs no torch."""
