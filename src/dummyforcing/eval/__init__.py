"""Judging videos: the rendered world of the bundled model, exact detectors for it, and held-out prompts."""
