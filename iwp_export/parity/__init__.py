"""An artefact against a reference, stage by stage: prompt, pixels, features, kept tokens, caches, logits, tokens."""
