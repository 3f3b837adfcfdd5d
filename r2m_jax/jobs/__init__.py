"""Whole jobs, from recipe to result: what commands and notebooks call."""
