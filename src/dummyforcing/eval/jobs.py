"""Many small jobs on one loaded model per process, in any number of processes, resumable.

    jobs = [Job(f"pair {n}", partial(work, n)) for n in range(256)]   # work(n, pipeline) -> record
    results = dict(run_jobs(jobs, Path("runs/journal.jsonl"), "tiny", ["cuda:0", "cuda:1"], workers=32))

Finished jobs are lines of the journal; a job whose name is there does not run again.
"""

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch

from dummyforcing.pipeline import Pipeline, load

Record = dict[str, Any]
"""Ready for JSON."""

_loaded: list[Pipeline] = []
"""The model of a worker process."""


@dataclass(frozen=True)
class Job:
    """A unit of work."""

    name: str
    """Says all that the result depends on, besides the model and the code."""
    work: Callable[[Pipeline], Record]
    """A function of a module, or a `partial` of one: it travels to another process."""


def run_jobs(
    jobs: Sequence[Job], journal: Path, model: str, devices: Sequence[str], workers: int
) -> Iterator[tuple[str, Record]]:
    """Run the jobs that the journal does not hold yet.

    Arithmetic is float32 without TF32, and every process has one thread of its own.

    Args:
        jobs: In the order in which they start.
        journal: File of finished jobs, one JSON object per line; its folder must exist.
        model: Name or folder.
        devices: Taken in turns by the processes.
        workers: Processes.

    Yields:
        Name and result of every job, those of the journal first, the others as they finish.
    """
    names = {job.name for job in jobs}
    done = {name: result for name, result in read_journal(journal) if name in names}
    yield from done.items()
    left = [job for job in jobs if job.name not in done]
    if not left:
        return
    context = multiprocessing.get_context("spawn")
    queue: SimpleQueue[str] = context.SimpleQueue()
    workers = min(workers, len(left))
    for device in islice(cycle(devices), workers):
        queue.put(device)
    # Not `with`: after Ctrl-C or an error the jobs that have not begun must not begin any more.
    pool = ProcessPoolExecutor(workers, context, _start, (model, queue))
    try:
        futures = {pool.submit(_work, job): job for job in left}
        with journal.open("a", encoding="utf-8") as file:
            for future in as_completed(futures):
                name, result = futures.pop(future).name, future.result()
                file.write(json.dumps({"job": name, "result": result}) + "\n")
                file.flush()
                yield name, result
    finally:
        pool.shutdown(cancel_futures=True)


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


def _start(model: str, queue: "SimpleQueue[str]") -> None:
    """Load the model in a worker process."""
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    _loaded.append(load(model, device=queue.get(), dtype="float32"))


def _work(job: Job) -> Record:
    return job.work(_loaded[0])
