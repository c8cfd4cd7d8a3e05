"""tiny-llava: a small LLaVA trained on a visual task in which single image regions matter."""
