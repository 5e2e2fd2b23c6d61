"""Numbers that kernels and their references share."""

import torch

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
TINIEST = 1e-12
"""Stands in for the largest magnitude of a row of zeros."""
MARGIN = (1, 2)
"""Rows below and columns beside a frame in what our convolution reads, all zero."""
SMALLEST_NORM = 1e-12
"""Of the channels of a pixel in the VAE; a smaller one counts as this."""
