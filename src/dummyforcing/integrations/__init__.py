"""Dummy Forcing inside the tools that people use already."""
