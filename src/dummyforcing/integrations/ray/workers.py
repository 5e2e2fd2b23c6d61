"""Loaded models on the machines of a cluster, which make videos as they get free.

with connected("auto") as cluster, Workers(cluster, files, options) as workers:
    for job, made in workers.make(jobs, request_of):
        folder.put(job, made.video, made.measures)

A worker is an actor of Ray: a process with a GPU of its own, or several, or a share of a machine's cores.
When it dies or hangs, or its machine, the video that it was at is made again by another one.
"""

import asyncio
import logging
import tempfile
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.errors import UserError
from dummyforcing.evaluation.generate import VideoFolder
from dummyforcing.evaluation.prompts import Job
from dummyforcing.integrations.ray.cluster import Cluster
from dummyforcing.integrations.ray.machines import Machines, Process, cause_of, load_here, reason_of
from dummyforcing.pipeline.options import LoadOptions
from dummyforcing.pipeline.request import Request

logger = logging.getLogger(__name__)

TRIES = 3
"""So often may workers die over a video, or on a machine while they load the model."""
LOOK = 1.0
"""Seconds after which one looks again which machines there are, and which workers answer."""
SILENT = 60
"""Looks after which a worker hangs that answered before, and answers nothing any more."""


@dataclass(frozen=True)
class Made:
    """A video that a worker has made."""

    video: bytes
    """The mp4."""
    measures: bytes | None
    """As `VideoFolder` keeps them; None: they were not asked for."""
    said: tuple[Warning, ...]
    """Warnings on the way."""


@dataclass
class Pulse:
    """Whether a worker answers."""

    asked: Any
    """What it answers at once, if it does not hang."""
    silent: int | None = None
    """Looks, one after the other, at which it had answered nothing; None: it has not begun to answer."""

    @property
    def hangs(self) -> bool:
        """Whether it answers nothing any more."""
        return self.silent is not None and self.silent >= SILENT


class Maker:
    """What runs in the process of a worker: the model, and a folder for as long as a video is in hand.

    The work is done in one thread, so that the process answers meanwhile.
    """

    def __init__(self, files: ModelFiles, options: LoadOptions) -> None:
        """Take what is needed to load the model.

        Args:
            files: The model; its files lie at the same place here, or are fetched from the Hub.
            options: How to load it.
        """
        self._files, self._options = files, options
        self._thread = ThreadPoolExecutor(1)

    async def pulse(self) -> None:
        """Answer."""

    async def load(self, request: Request) -> None:
        """Load the model, for such a video.

        Raises:
            UserError: If it cannot be.
        """
        await asyncio.get_running_loop().run_in_executor(self._thread, self._load, request)

    async def make(self, job: Job, request: Request, measured: bool) -> Made:
        """Make a video, and measure it if that is wished.

        Raises:
            UserError: If it cannot be made.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._make, job, request, measured
        )

    def _load(self, request: Request) -> None:
        self._pipeline = load_here(self._files, self._options, request)

    def _make(self, job: Job, request: Request, measured: bool) -> Made:
        # A folder for each video: the process does not end by itself, and so could not remove one at its end.
        with tempfile.TemporaryDirectory(prefix="dummyforcing-") as temporary:
            folder = VideoFolder.open(Path(temporary), {}, self._pipeline.device)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                folder.make(job, self._pipeline, request)
                if measured:
                    folder.measure(job, self._files.preset)
            video = folder.take(job)
        return Made(*video, tuple(one.message for one in said if isinstance(one.message, Warning)))


class Workers:
    """The workers of a cluster: they begin when there is something to make, and end with the block."""

    def __init__(self, cluster: Cluster, files: ModelFiles, options: LoadOptions) -> None:
        """Describe them.

        Args:
            cluster: Where they work. Machines that come to it later get workers, too.
            files: The model.
            options: How to load it.

        Raises:
            UserError: If the cluster lacks the device.
        """
        self._files, self._options = files, options
        self.device = cluster.device(options.device)
        """That of all workers; its number is another for each."""
        self._machines = Machines(cluster, self.device, gpus=options.gpus)
        self._workers: dict[Process, Pulse] = {}
        self._idle: list[Process] = []
        self._working: dict[Any, tuple[Process, Job | None]] = {}
        """What is asked of each, and for which video; None: it loads the model."""
        self._looked = 0.0
        """When one looked last."""
        self._lost: Counter[str] = Counter()
        """Workers of a machine, by its id, that died before they had loaded the model."""
        self._reason = ""
        """Why the last one died."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def make(
        self, jobs: Sequence[Job], request_of: Callable[[Job], Request], *, measured: bool = True
    ) -> Iterator[tuple[Job, Made]]:
        """Make videos, each by the worker that is free first; gives them as they are finished.

        Args:
            jobs: The videos.
            request_of: What is asked of the model for one.
            measured: Whether to measure them, too.

        Raises:
            UserError: If one of them cannot be made, or workers died over it again and again; in this case
                all others were made.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        queue, died = deque(jobs), Counter[Job]()
        while queue or any(job is not None for _, job in self._working.values()):
            self._hire(len(queue), lambda: request_of(jobs[0]))
            while queue and self._idle:
                job, worker = queue.popleft(), self._idle.pop()
                asked = worker.actor.make.remote(job, request_of(job), measured)
                self._working[asked] = worker, job
            ready, _ = ray.wait(list(self._working), timeout=LOOK)
            self._end_silent()
            for asked in ready:
                worker, in_hand = self._working.pop(asked)
                try:
                    made = ray.get(asked)
                except RayTaskError as error:
                    raise cause_of(error) from error
                except RayError as error:  # the process or its machine is gone
                    self._forget(worker, in_hand, reason_of(error))
                    if in_hand is not None:
                        died[in_hand] += 1
                        if died[in_hand] < TRIES:
                            queue.appendleft(in_hand)
                    continue
                self._idle.append(worker)
                if in_hand is None:
                    self._lost[worker.node.id] = 0
                    continue
                for warning in made.said:
                    warnings.warn(warning, stacklevel=2)
                yield in_hand, made
        given_up = [job.name for job, count in died.items() if count >= TRIES]
        if given_up:
            raise UserError(
                f"{len(given_up)} of {len(jobs)} videos could not be made, '{given_up[0]}' among them: "
                f"{TRIES} processes died over it, the last one with: {self._reason}",
                "see Ray's logs for why; the same command makes what is missing",
            )

    def _hire(self, waiting: int, request: Callable[[], Request]) -> None:
        """Begin a worker wherever one fits, but no more than videos wait; they begin to load the model.

        Raises:
            UserError: If there can be none.
        """
        free = self._machines.free(worker.node for worker in self._workers)
        free = [node for node in free if self._lost[node.id] < TRIES]
        loading = sum(job is None for _, job in self._working.values())
        for node in free[: max(waiting - loading - len(self._idle), 0)]:
            worker = self._machines.begin(node, Maker, self._files, self._options)
            self._workers[worker] = Pulse(worker.actor.pulse.remote())
            self._working[worker.actor.load.remote(request())] = worker, None
        if waiting and not self._workers:
            if self._reason and self._lost:
                problem = f"No process of the Ray cluster outlives to load the model: {self._reason}"
                raise UserError(problem, "see Ray's logs for why, or take a smaller model")
            device = "CPU" if self.device.type == "cpu" else "GPU"
            if self.device.type == "cuda" and self._options.gpus > 1:
                device = f"machine with {self._options.gpus} GPUs"
            raise UserError(f"The Ray cluster has no {device} for a video", "add a machine that has some")

    def _end_silent(self) -> None:
        """End the workers that hang; what they were at fails then."""
        import ray

        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        # Looks are counted, and not time: this process may have been stopped, too.
        for worker, pulse in self._workers.items():
            if pulse.hangs:  # it is being ended
                continue
            if ray.wait([pulse.asked], timeout=0)[0]:
                pulse.asked, pulse.silent = worker.actor.pulse.remote(), 0
            elif pulse.silent is not None:  # else it may be that its machine has no room for it yet
                pulse.silent += 1
                if pulse.hangs:
                    worker.end()

    def _forget(self, worker: Process, in_hand: Job | None, reason: str) -> None:
        if self._workers.pop(worker).hangs:
            reason = f"it has answered nothing for {SILENT * LOOK:.0f} s"
        self._reason = reason
        logger.info("a worker on %s died: %s", worker.node.address, reason)
        if in_hand is None:
            self._lost[worker.node.id] += 1
        with suppress(ValueError):
            self._idle.remove(worker)
