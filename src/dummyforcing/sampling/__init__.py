"""Chunk by chunk from noise to latents: schedules, the three loops and their parts."""
