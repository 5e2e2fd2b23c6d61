"""Judges of videos of the rendered world that only studies need."""
