"""What runs the graphs: torch, ONNX Runtime, TensorRT, all behind one interface."""
