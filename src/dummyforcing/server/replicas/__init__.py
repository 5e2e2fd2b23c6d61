"""Loaded models, each in a place of its own: the server's thread for it, or a process of Ray."""
