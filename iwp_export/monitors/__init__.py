"""Where a model reads its image, what its layers attend to, and what is left of that after pruning."""
