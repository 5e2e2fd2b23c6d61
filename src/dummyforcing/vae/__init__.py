"""Latents to pixel frames as they come: streamed, in tiles, or through a small decoder."""
