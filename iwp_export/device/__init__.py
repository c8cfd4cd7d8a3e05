"""This machine: GPU, memory, installed packages and compilers. Needs no torch."""
