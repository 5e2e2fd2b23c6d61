"""Many small jobs on one loaded model per process, in any number of processes, resumable.

    jobs = [Job(f"pair {n}", partial(work, n)) for n in range(256)]   # work(n, pipeline) -> record
    with Workers("tiny", ["cuda:0", "cuda:1"], count=32) as workers:
        results = dict(workers.run(jobs, Path("runs/journal.jsonl")))

Finished jobs are lines of the journal; a job whose name is there does not run again.
"""

import json
import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch

from dummyforcing.files.records import to_json
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load

Record = dict[str, Any]
"""Ready for JSON."""

_loaded: list[DummyForcingPipeline] = []
"""The model of a worker process."""


@dataclass(frozen=True)
class Job:
    """A unit of work."""

    name: str
    """Says all that the result depends on, besides the model and the code."""
    work: Callable[[DummyForcingPipeline], Record]
    """A function of a module, or a `partial` of one: it travels to another process."""


class Workers:
    """Processes with one loaded model each. Arithmetic is without TF32, in one thread per process.

    They start when there is something to do, and end with the `with` block.
    """

    def __init__(self, model: str, devices: Sequence[str], count: int, dtype: str | None = "float32") -> None:
        """Get ready.

        Args:
            model: Name or folder.
            devices: Taken in turns by the processes.
            count: Processes.
            dtype: Of the computation; None: as users have it on such a device.
        """
        context = multiprocessing.get_context("spawn")
        queue: SimpleQueue[str] = context.SimpleQueue()
        for device in islice(cycle(devices), count):
            queue.put(device)
        self._count = count
        self._pool = ProcessPoolExecutor(count, context, _start, (model, queue, dtype))

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(
        self, jobs: Sequence[Job], journal: Path, until: float = math.inf
    ) -> Iterator[tuple[str, Record]]:
        """Run the jobs that the journal does not hold yet.

        Args:
            jobs: In the order in which they start.
            journal: File of finished jobs, one JSON object per line; its folder must exist.
            until: When no more jobs are begun, by `time.monotonic`; those in hand are finished.

        Yields:
            Name and result of every job, those of the journal first, the others as they finish.
        """
        names = {job.name for job in jobs}
        done = {name: result for name, result in read_journal(journal) if name in names}
        yield from done.items()
        waiting = iter([job for job in jobs if job.name not in done])
        futures: dict[Future[Record], str] = {}

        def begin(count: int) -> None:
            for job in islice(waiting, count if time.monotonic() <= until else 0):
                futures[self._pool.submit(_work, job)] = job.name

        begin(self._count)  # no more at a time: what the pool has cannot be taken back
        with journal.open("a", encoding="utf-8") as file:
            while futures:
                for future in wait(futures, return_when=FIRST_COMPLETED).done:
                    name, result = futures.pop(future), future.result()
                    begin(1)
                    file.write(to_json({"job": name, "result": result}) + "\n")
                    file.flush()
                    yield name, result


def read_journal(journal: Path) -> list[tuple[str, Record]]:
    """Names and results of the finished jobs; a line that was cut off while it was written does not count."""
    if not journal.exists():
        return []
    text = journal.read_text(encoding="utf-8")
    lines = text.split("\n")
    if lines[-1]:
        journal.write_text(text[: -len(lines[-1])], encoding="utf-8")
    entries = [json.loads(line) for line in lines[:-1]]
    return [(entry["job"], entry["result"]) for entry in entries]


def _start(model: str, queue: "SimpleQueue[str]", dtype: str | None) -> None:
    """Load the model in a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # after Ctrl-C nobody waits for the job in hand
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = queue.get()
    if device.startswith("cuda"):
        torch.cuda.set_device(device)  # else every process would also take memory of the first GPU
    _loaded.append(load(model, device=device, torch_dtype=dtype))


def _work(job: Job) -> Record:
    return job.work(_loaded[0])
