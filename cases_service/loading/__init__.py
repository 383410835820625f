"""How cases get in: the load format, and the bulk load."""
