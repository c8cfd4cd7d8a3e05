"""Recipes and data sets: how the models and calibration images that this project ships are made."""
