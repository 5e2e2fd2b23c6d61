"""Positions that no table holds."""

import pytest
import torch

from dummyforcing.kernels.rope import THETA, apply_rope, rope_table


@pytest.mark.parametrize("frame", [0, 1023, 5000, 100_000])
def test_any_frame_number_is_exact(frame):
    """Against complex numbers in float64."""
    height, width, dim = 2, 3, 26
    spatial = 2 * (dim // 6)
    angles = torch.zeros(height * width, dim // 2, dtype=torch.float64)
    for token in range(height * width):
        parts = ((frame, dim - 2 * spatial), (token // width, spatial), (token % width, spatial))
        angles[token] = torch.tensor(
            [p * THETA ** (-2 * i / size) for p, size in parts for i in range(size // 2)], dtype=torch.float64
        )
    cos, sin = rope_table(torch.tensor([frame]), height, width, dim)
    torch.testing.assert_close(cos.double(), angles.cos(), atol=1e-7, rtol=0)
    torch.testing.assert_close(sin.double(), angles.sin(), atol=1e-7, rtol=0)

    x = torch.randn(1, height * width, 2, dim)
    turned = (
        torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
        * torch.polar(torch.ones_like(angles), angles)[:, None]
    )
    expected = torch.view_as_real(turned).flatten(-2).float()
    torch.testing.assert_close(apply_rope(x, cos, sin), expected, atol=1e-6, rtol=0)


def test_turning_on_is_making_later():
    """A key of frame 3 turned on by 4000 frames is a key of frame 4003."""
    x = torch.randn(1, 6, 2, 8)
    made = apply_rope(x, *rope_table(torch.tensor([3]), 2, 3, 8))
    turned = apply_rope(made, *rope_table(torch.tensor([4000]), 1, 1, 8))
    torch.testing.assert_close(
        turned, apply_rope(x, *rope_table(torch.tensor([4003]), 2, 3, 8)), atol=2e-6, rtol=0
    )
