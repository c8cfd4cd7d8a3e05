"""How much of a model's score pruning costs: questions asked at several keep ratios, scored, compared with keep 1."""
