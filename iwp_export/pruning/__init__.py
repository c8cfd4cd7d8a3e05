"""The IWP method: settings, the numpy oracle, its torch and ONNX forms, and rival methods to compare with."""
