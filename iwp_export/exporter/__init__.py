"""From a checkpoint to the graphs of a bundle. The only part that needs torch."""
