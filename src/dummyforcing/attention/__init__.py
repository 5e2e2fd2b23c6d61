"""Attention of the current chunk: one entry point, the kernels behind it, and keys split into parts."""
