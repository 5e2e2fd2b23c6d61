"""The replicas of the model that take part, and which of them gets a video."""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from dummyforcing.method.plan import Plan
from dummyforcing.server.costs import Claim, Costs
from dummyforcing.server.engine import Engine
from dummyforcing.server.replicas.facts import Facts
from dummyforcing.server.replicas.replica import LocalReplica, Replica, ReplicaLost
from dummyforcing.server.web.metrics import Metrics

logger = logging.getLogger(__name__)

TRIES = 3
"""So often may replicas end over a session or a job before it is given up."""


class Fleet:
    """The replicas at work."""

    def __init__(self, facts: Facts, metrics: Metrics) -> None:
        """Begin with none.

        Args:
            facts: Of the model.
            metrics: Count what they do.
        """
        self.facts, self.metrics, self.costs = facts, metrics, Costs(facts)
        self.engines: list[Engine] = []
        self.newest_plan: Plan | None = None
        """Of the newest video whose heads were classified."""
        self.when_lost: list[Callable[[Engine], None]] = []
        """Are told of an engine whose replica is gone, with all that it was at."""
        self.when_changed: list[Callable[[], None]] = []
        """Are told when there may be room where there was none."""
        self.demands: list[Callable[[], Awaitable[int]]] = []
        """Tell how many further replicas some kind of work could use at once."""
        self.is_closing = asyncio.Event()
        self._count, self._numbers = 0, itertools.count()

    @property
    def is_ready(self) -> bool:
        """Whether a replica is loaded and warm."""
        return any(engine.is_ready for engine in self.engines)

    async def demand(self) -> int:
        """How many further replicas could be used at once."""
        return sum([await one() for one in self.demands])

    async def serve(self, replica: Replica) -> None:
        """Let a replica take part until it is gone, retired, or the fleet is closed."""
        self._count += 1
        engine = Engine(replica, self.costs, self.metrics, self._numbers, str(self._count))
        self.engines.append(engine)
        logger.info("replica %s is %s", engine.name, replica.place)
        self.metrics.replica_videos.labels(engine.name).set_function(lambda: engine.users)
        self._changed()
        try:
            await engine.run()
        except ReplicaLost as lost:
            logger.error("replica %s is gone: %s", engine.name, lost)
            self.metrics.lost_replicas.inc()
            self.engines.remove(engine)
            for told in self.when_lost:
                told(engine)
            self._changed()
        finally:
            self.metrics.replica_videos.remove(engine.name)

    async def retire(self, engine: Engine) -> None:
        """Let a replica take part no longer that has nothing to do."""
        self.engines.remove(engine)
        await engine.close()

    def place(self, claim: Claim, without: "set[Engine] | None" = None) -> Engine | None:
        """The replica with the least to do, of those with room; None: there is none.

        Args:
            claim: What a video takes.
            without: Not these.
        """
        free = [one for one in self.engines if one.has_room(claim) and one not in (without or ())]
        # One that is warming up only if all are.
        return min(free, key=lambda one: (not one.is_ready, one.load, one.users), default=None)

    async def close(self) -> None:
        """Finish the chunks in hand, and end."""
        self.is_closing.set()
        await asyncio.gather(*(engine.close() for engine in self.engines))

    def _changed(self) -> None:
        for told in self.when_changed:
            told()


class Replicas(Protocol):
    """Where replicas come from."""

    facts: Facts
    """Of the model."""

    async def run(self, fleet: Fleet) -> None:
        """Have replicas take part, as many as are needed, until the fleet is closed."""

    @property
    def coming(self) -> int:
        """How many are being loaded."""


class OneReplica:
    """A model in this process, and nothing else."""

    coming = 0

    def __init__(self, replica: LocalReplica) -> None:
        """Take it."""
        self.facts, self._replica = replica.facts, replica

    async def run(self, fleet: Fleet) -> None:
        """Have it take part until the fleet is closed."""
        await fleet.serve(self._replica)
