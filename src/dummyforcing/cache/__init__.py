"""The KV cache: static frame slots for every head group, written in place."""
