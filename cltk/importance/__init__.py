"""Importance of parameters: the Fisher information and its kin."""
