"""Pictures that tests change."""

import math

import torch
import torch.nn.functional as F


def blur(pictures, sigma):
    radius = math.ceil(3 * sigma)
    weights = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    weights = (weights / weights.sum()).expand(3, 1, 1, -1)
    pictures = F.pad(pictures, (radius,) * 4, mode="replicate")
    pictures = F.conv2d(pictures, weights, groups=3)
    return F.conv2d(pictures, weights.transpose(2, 3), groups=3)
