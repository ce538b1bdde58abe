"""Runs that exist: what other harnesses (and cltk itself) wrote is read into the instrument's own scores, without a model.

A room a format; `reading.read` finds which one a path is, `comparing.compare` makes the forgetting table of two.
"""
