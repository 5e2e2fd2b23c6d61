"""Dummy Forcing: autoregressive video diffusion whose attention heads keep only the past that they use."""

__version__ = "0.1.0"
