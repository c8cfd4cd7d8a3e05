"""How fast a model would be on a device and whether it fits, from its shape alone: a roofline. Nothing is run."""
