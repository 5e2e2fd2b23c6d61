"""Exact judges of videos of the rendered world."""
