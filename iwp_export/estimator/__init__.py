"""Whether a model fits on a device and how fast it decodes there, from its shape alone. Nothing is run."""
