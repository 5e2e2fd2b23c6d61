"""Fused GPU kernels, each beside its reference in torch."""
