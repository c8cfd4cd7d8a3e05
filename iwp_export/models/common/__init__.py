"""What families of models share: their interface, pictures, tiles, and the plain decoder."""
