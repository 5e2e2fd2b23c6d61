"""How many viewers so many GPUs have time for: a simulation of the server, from the measured time of a chunk.

python -m research.benchmarks.viewers --measured live-gpu --output benchmarks/results/viewers-h200.json

Each GPU is a server with our own `Scheduler`, and each viewer the player of the page: it plays slower while
there is little in its buffer, and stalls where nothing is left. Viewers come by chance (a Poisson process)
and watch for a while (exponential); each goes to the GPU with the fewest, and stays there. Once everybody is
let in, and once only as many as a GPU has time for, while the others wait. What `dummyforcing bench
--viewers` has measured with real servers is simulated, too, so that one can compare.
"""

import argparse
import heapq
import json
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from dummyforcing.client.viewers import SLOWEST, THIN
from dummyforcing.evaluation.results import write_results
from dummyforcing.pipeline.devices import choose_device
from dummyforcing.server.engine import FULL
from dummyforcing.server.live.session import PATIENCE
from dummyforcing.server.scheduler import Scheduler, Turn

RESULTS = Path("benchmarks/results")
WARM = 0.1
"""Share of the simulated time that is not counted: it begins without viewers."""
LONG = 10.0
"""Seconds of waiting for a place that are told."""


@dataclass(frozen=True)
class Server:
    """What is known of the servers, seconds."""

    chunk: float
    """Of the device for a chunk."""
    shown: float
    """That a chunk is shown for."""
    ahead: int
    """Chunks that are made ahead of the viewer."""

    @property
    def most(self) -> int:
        """Viewers that one lets in."""
        return max(int(FULL * self.shown / self.chunk), 1)


def play(lead: float, amount: float) -> float:
    """Seconds that it takes to play `amount` seconds of a buffer of `lead`, of which it is a part.

    Below `THIN`, the speed falls in a line to `SLOWEST` at nothing, so that what is left decays.
    """
    slope, rest = (1 - SLOWEST) / THIN, SLOWEST / ((1 - SLOWEST) / THIN)
    left = lead - amount
    full = max(lead - max(left, THIN), 0.0)
    start = min(lead, THIN)
    return full + (math.log((start + rest) / (left + rest)) / slope if left < start else 0.0)


def played(lead: float, seconds: float) -> float:
    """How much of a buffer is played in some seconds; the reverse of `play`."""
    slope, rest = (1 - SLOWEST) / THIN, SLOWEST / ((1 - SLOWEST) / THIN)
    full = min(max(lead - THIN, 0.0), seconds)
    start, seconds = lead - full, seconds - full
    return full + min((start + rest) * (1 - math.exp(-slope * seconds)), start)


@dataclass(eq=False)
class Viewer:
    """Somebody who watches."""

    turn: Turn
    asked: float
    """When he came."""
    ends: float
    """When he goes."""
    came: int = 0
    """Chunks that were sent to him."""
    shown: int = -1
    """The chunk that the picture is at."""
    shown_at: float = 0.0
    lead: float = 0.0
    """Seconds of video in his buffer, at `now`."""
    now: float = 0.0
    version: int = 0
    """Of what is to happen to him; older events are void."""
    began: float | None = None
    """When he saw the first picture."""
    stalled_since: float | None = None
    stalls: list[float] = field(default_factory=list)

    def late(self, shown: float) -> float:
        """Seconds by which the video took longer, played slower or stalled; once he has gone."""
        if self.began is None:
            return 0.0
        return self.ends - self.began - (self.came * shown - self.lead)


class Gpu:
    """A server: who watches there, and what the device is at."""

    def __init__(self) -> None:
        """Begin without anybody."""
        self.scheduler = Scheduler()
        self.viewers: dict[int, Viewer] = {}
        self.is_busy = False


class Simulation:
    """Servers and their viewers, event by event."""

    def __init__(self, server: Server, gpus: int, *, admits: bool) -> None:
        """Begin without viewers.

        Args:
            server: What all of them are like.
            gpus: How many there are.
            admits: Whether viewers wait for whom there is no time; else all are let in.
        """
        self.server, self.admits = server, admits
        self.gpus = [Gpu() for _ in range(gpus)]
        self.waiting: deque[Viewer] = deque()
        self.gone: list[tuple[Viewer, float]] = []
        """Who has watched, and for how many seconds he had waited for a place."""
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()

    def at(self, time: float, what: Callable[[], None]) -> None:
        """Have something happen."""
        heapq.heappush(self._events, (time, next(self._number), what))

    def run(self, until: float) -> None:
        """Let things happen until a time."""
        while self._events and self._events[0][0] <= until:
            self.now, _, what = heapq.heappop(self._events)
            what()

    def come(self, seconds: float) -> None:
        """A viewer comes, who wants to watch for so long."""
        viewer = Viewer(Turn(str(next(self._number)), is_live=True), self.now, seconds)
        self.waiting.append(viewer)
        self._let_in()

    def _let_in(self) -> None:
        while self.waiting:
            gpu = min(self.gpus, key=lambda one: len(one.viewers))
            if self.admits and len(gpu.viewers) >= self.server.most:
                return
            viewer = self.waiting.popleft()
            waited, viewer.ends = self.now - viewer.asked, self.now + viewer.ends
            viewer.shown_at = self.now + PATIENCE - self.server.shown
            gpu.viewers[id(viewer.turn)] = viewer
            self._look(viewer)
            self.at(viewer.ends, partial(self._go, gpu, viewer, waited))
            self._work(gpu)

    def _go(self, gpu: Gpu, viewer: Viewer, waited: float) -> None:
        """He has seen enough."""
        self._catch_up(viewer)
        del gpu.viewers[id(viewer.turn)]
        gpu.scheduler.forget(viewer.turn.owner)
        viewer.version += 1
        if viewer.stalled_since is not None:
            viewer.stalls.append(self.now - viewer.stalled_since)
        self.gone.append((viewer, waited))
        self._let_in()

    # --- the device ----------------------------------------------------------------------------------------

    def _look(self, viewer: Viewer) -> None:
        """As `LiveTrack.look` does."""
        rests = viewer.came > viewer.shown + self.server.ahead
        due = viewer.shown_at + (viewer.came - viewer.shown) * self.server.shown
        viewer.turn.due = None if rests else due

    def _work(self, gpu: Gpu) -> None:
        """Begin a chunk, if the device is free and one is needed."""
        if gpu.is_busy:
            return
        turn = gpu.scheduler.next((viewer.turn for viewer in gpu.viewers.values()), self.now)
        if turn is not None:
            gpu.is_busy = True
            self.at(self.now + self.server.chunk, lambda: self._made(gpu, turn))

    def _made(self, gpu: Gpu, turn: Turn) -> None:
        gpu.is_busy = False
        viewer = gpu.viewers.get(id(turn))
        if viewer is not None:
            gpu.scheduler.used(turn, self.server.chunk, self.now)
            self._arrive(gpu, viewer)
        self._work(gpu)

    # --- the player ----------------------------------------------------------------------------------------

    def _arrive(self, gpu: Gpu, viewer: Viewer) -> None:
        self._catch_up(viewer)
        viewer.came += 1
        viewer.lead += self.server.shown
        if viewer.began is None:
            viewer.began = self.now
            self._show(gpu, viewer)
        elif viewer.stalled_since is not None:
            viewer.stalls.append(self.now - viewer.stalled_since)
            viewer.stalled_since = None
            self._show(gpu, viewer)
        else:
            self._look(viewer)
            self._plan(gpu, viewer)

    def _catch_up(self, viewer: Viewer) -> None:
        """Play until now."""
        if viewer.began is not None and viewer.stalled_since is None:
            viewer.lead -= played(viewer.lead, self.now - viewer.now)
        viewer.now = self.now

    def _show(self, gpu: Gpu, viewer: Viewer) -> None:
        """The picture comes to the next chunk."""
        viewer.shown, viewer.shown_at = viewer.shown + 1, self.now
        self._look(viewer)
        self._plan(gpu, viewer)
        self._work(gpu)

    def _plan(self, gpu: Gpu, viewer: Viewer) -> None:
        """Foresee when the picture comes to the end of its chunk."""
        viewer.version += 1
        later = (viewer.came - viewer.shown - 1) * self.server.shown
        end = self.now + play(viewer.lead, max(viewer.lead - later, 0.0))

        def ended(version: int = viewer.version) -> None:
            if version != viewer.version:
                return
            self._catch_up(viewer)
            viewer.lead = later
            if viewer.came > viewer.shown + 1:
                self._show(gpu, viewer)
            else:
                viewer.stalled_since = self.now

        self.at(end, ended)


def together(server: Server, viewers: int, seconds: float) -> dict[str, float]:
    """All begin within a second on one GPU and are let in, as `dummyforcing bench --viewers` does."""
    run = Simulation(server, 1, admits=False)
    for number in range(viewers):
        run.at(number / viewers, partial(run.come, seconds))
    run.run(math.inf)
    return {
        "stalled": sum(sum(viewer.stalls) for viewer, _ in run.gone) / viewers / seconds,
        "late": sum(viewer.late(server.shown) for viewer, _ in run.gone) / viewers / seconds,
    }


def crowd(
    server: Server, gpus: int, viewers: float, *, stays: float, seconds: float, admits: bool, seed: int
) -> dict[str, float]:
    """Viewers come and go, so many at once on average if nobody waited.

    Args:
        server: What the servers are like.
        gpus: How many there are.
        viewers: At once, mean.
        stays: Seconds that somebody watches, mean.
        seconds: Of all.
        admits: Whether viewers wait for a place.
        seed: Of chance.

    Returns:
        Shares: of the time that is watched, `stalled`, and `late` (stalled, or by slower play); of the
        viewers, who `waited` for `LONG` or more.
    """
    chance, run, time = random.Random(seed), Simulation(server, gpus, admits=admits), 0.0
    while (time := time + chance.expovariate(viewers / stays)) < seconds:
        run.at(time, partial(run.come, chance.expovariate(1 / stays)))
    run.run(seconds)
    counted = [(viewer, waited) for viewer, waited in run.gone if viewer.asked > WARM * seconds]
    still = [viewer for viewer in run.waiting if WARM * seconds < viewer.asked < seconds - LONG]
    watched = sum(viewer.ends - viewer.asked - waited for viewer, waited in counted)
    return {
        "viewers": viewers,
        "stalled": sum(sum(viewer.stalls) for viewer, _ in counted) / watched,
        "late": sum(viewer.late(server.shown) for viewer, _ in counted) / watched,
        "waited": (sum(waited > LONG for _, waited in counted) + len(still)) / (len(counted) + len(still)),
        "counted": len(counted),
    }


def of_measured(row: dict[str, Any]) -> dict[str, float]:
    """The same of a row of `dummyforcing bench --viewers`."""
    stalled = row["stalled_seconds"] / row["viewers"] / row["seconds"]
    return {"stalled": stalled, "late": stalled + row["slowed_s"]["p50"] / row["seconds"]}


def main() -> None:
    """Simulate, and write the results."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--measured", default="live-gpu", help="result of bench --viewers")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--stays", type=float, default=300.0, help="seconds that a viewer watches, mean")
    parser.add_argument("--seconds", type=float, default=80_000.0, help="simulated time, shared by the GPUs")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    measured = json.loads((RESULTS / f"{args.measured}.json").read_text())
    shown = 12 / measured["fps"]
    server = Server(measured["chunk_seconds"], shown, measured["ahead"])
    rows: dict[str, Any] = {}
    for gpus in args.gpus:
        shares = [step / 10 for step in range(2, 14)]
        loads = [round(share * gpus * server.shown / server.chunk, 2) for share in shares]
        rows[str(gpus)] = {
            name: [
                crowd(
                    server,
                    gpus,
                    load,
                    stays=args.stays,
                    seconds=args.seconds / gpus,
                    admits=admits,
                    seed=0,  # the same viewers at all loads, only more of them in a while
                )
                for load in loads
            ]
            for name, admits in (("all let in", False), ("some wait", True))
        }
    found = {
        "measured": args.measured,
        "measured_device": measured["device"],
        "chunk_seconds": server.chunk,
        "shown_seconds": shown,
        "ahead": server.ahead,
        "admits": server.most,
        "stays": args.stays,
        "compared": [
            {
                "viewers": row["viewers"],
                "measured": of_measured(row),
                "simulated": together(server, row["viewers"], row["seconds"]),
            }
            for row in measured["rows"]
        ],
        "gpus": rows,
    }
    write_results(args.output, found, choose_device("cpu"))


if __name__ == "__main__":
    main()
