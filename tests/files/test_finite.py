"""Whether numbers are finite, against torch's own test of every one of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dummyforcing.files.finite import all_finite, faults

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
NAN, INF = float("nan"), float("inf")


@given(
    st.lists(st.one_of(st.floats(-400, 400), st.sampled_from((NAN, INF, -INF))), max_size=80),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_as_isfinite(numbers: list[float], dtype: torch.dtype, is_matrix: bool) -> None:
    tensor = torch.tensor(numbers, dtype=torch.float64).to(dtype)
    if is_matrix and len(numbers) % 2 == 0:
        tensor = tensor.reshape(2, -1).T
    result = all_finite(tensor)
    assert (result.shape, result.dtype) == ((), torch.bool)
    assert bool(result) == bool(torch.isfinite(tensor.double()).all())


@pytest.mark.parametrize("dtype", DTYPES[:4])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_one_number_anywhere(dtype: torch.dtype, bad: float) -> None:
    """In parts that are worked on in vectors, in their remainders, and by other threads."""
    largest = torch.finfo(dtype).max
    for count in (1, 7, 64, 1000, 100_003):
        tensor = torch.full((count,), largest, dtype=dtype)  # a sum would overflow
        tensor[::2] = -largest
        assert all_finite(tensor)
        for place in {0, count // 2, count - 1}:
            one = tensor.clone()
            one[place] = bad
            assert not all_finite(one)


def test_what_cannot_be_anything_else() -> None:
    for tensor in (
        torch.empty(0),
        torch.empty(3, 0, dtype=torch.bfloat16),
        torch.arange(3),
        torch.ones(2) > 0,
    ):
        assert all_finite(tensor)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([NAN, 1.0, 2.0], "1 of 3 numbers is NaN"),
        ([INF, -INF, 2.0], "2 of 3 numbers are infinite"),
        ([INF, NAN], "2 of 2 numbers are NaN or infinite"),
        ([-INF], "1 of 1 number is infinite"),
    ],
)
def test_faults_in_words(numbers: list[float], words: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert faults(torch.tensor(numbers, dtype=dtype)) == words
    many = torch.zeros(4096)
    many[5] = NAN
    assert faults(many) == "1 of 4,096 numbers is NaN"
