"""What processes of other GPUs are told to do in tests: they import it from here."""

from dummyforcing.errors import BadFile
from dummyforcing.runtime.ranks import Ranks


def refused_elsewhere(ranks: Ranks) -> int:
    """Gives the number of the first rank, and is refused on all others."""
    if ranks.rank:
        raise BadFile("This machine has no such file", "copy it there")
    return ranks.rank
