"""The inside of `attach` and `session`: what the host is, what it cannot run, and how its loss is scaled."""
