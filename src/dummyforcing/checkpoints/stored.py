"""A tensor that is still in its file."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in its file."""

    shape: tuple[int, ...]
    dtype: str
    """`float32` and so on."""
    read: Callable[[], Tensor]
    """Maps it into memory, on the CPU; not to be written to."""
    place: str = ""
    """Its name there and the file, for error messages; empty: it is in none."""
