"""From a bundle to TensorRT engines: lowering passes, the plugin, building. Needs no torch."""
