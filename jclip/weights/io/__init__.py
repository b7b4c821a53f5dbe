"""Files of arrays: what holds them, read piece by piece and never trusted."""
