"""How a model is run, fast and exact: packed rows, attention by sequence, losses, probes."""
