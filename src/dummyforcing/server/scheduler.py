"""Who gets the device for the next chunk. Live videos come first while they are short of frames.

turn = scheduler.next(turns, now)
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

WINDOW = 10.0
"""Seconds over which the use of the device is compared."""
SHORT = 1.0
"""Seconds: who has less until the next chunk has to be there is short of time."""
JOBS_SHARE = 0.1
"""Of the device, that jobs get at least while there are some."""


class Usage:
    """The device's seconds that somebody used of late; older ones fade away within some `WINDOW`."""

    def __init__(self, now: float) -> None:
        """Begin to count."""
        self._amount, self._at, self._since = 0.0, now, now

    def add(self, seconds: float, now: float) -> None:
        """Count a use that ends now."""
        self._amount, self._at = self._faded(now) + seconds, now
        self._since = min(self._since, now - seconds)

    def share(self, now: float) -> float:
        """About the share of the device that was used: 1 is all of it."""
        whole = 1 - math.exp((self._since - now) / WINDOW)
        return self._faded(now) / WINDOW / whole if whole else 0.0

    def _faded(self, now: float) -> float:
        return self._amount * math.exp((self._at - now) / WINDOW)


@dataclass(eq=False)
class Turn:
    """What the scheduler knows of a video in the making."""

    owner: str
    """The session or the job: the use of the device counts for it as a whole."""
    is_live: bool
    due: float | None = None
    """When its next chunk has to be there, by the clock of `next`; None: it needs nothing now. Of jobs only
    that they need something counts."""


class Scheduler:
    """Chooses among videos, and keeps the account of the device's time."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._owners: dict[str, Usage] = {}
        self._jobs: Usage | None = None

    def next(self, turns: Iterable[Turn], now: float) -> Turn | None:
        """Choose who gets the next chunk; None: nobody needs one.

        The live video whose next chunk has to be there first (earliest deadline first, which keeps all of
        them if that can be done). If its session has used more than its share of late, others that are short
        of time go before it: who asks for more than the device gives slows himself down alone. Jobs take what
        is left, in their order, and a small share in any case.
        """
        turns = list(turns)
        ready = [turn for turn in turns if turn.due is not None]
        live = [turn for turn in ready if turn.is_live]
        jobs = [turn for turn in ready if not turn.is_live]
        if not live:
            return jobs[0] if jobs else None
        if jobs and (self._jobs is None or self._jobs.share(now) < JOBS_SHARE):
            return jobs[0]
        fair = 1 / len({turn.owner for turn in turns if turn.is_live})

        def urgency(turn: Turn) -> tuple[bool, float]:
            assert turn.due is not None
            can_wait = turn.due > now + SHORT or self._share(turn.owner, now) > 1.25 * fair
            return can_wait, turn.due

        return min(live, key=urgency)

    def used(self, turn: Turn, seconds: float, now: float) -> None:
        """Note that a chunk took so long."""
        self._owners.setdefault(turn.owner, Usage(now - seconds)).add(seconds, now)
        if not turn.is_live:
            self._jobs = self._jobs or Usage(now - seconds)
            self._jobs.add(seconds, now)

    def forget(self, owner: str) -> None:
        """Drop the account of somebody who is gone."""
        self._owners.pop(owner, None)

    def _share(self, owner: str, now: float) -> float:
        usage = self._owners.get(owner)
        return usage.share(now) if usage else 0.0
