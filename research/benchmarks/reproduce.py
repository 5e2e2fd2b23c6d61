"""Reproduce the paper's claims on the bundled model: run everything, draw the figures, write the page.

python -m research.benchmarks.reproduce --device cuda --gpus 4 --workers 64  # everything
python -m research.benchmarks.reproduce --parts page                 # figures and page from the results
python -m research.benchmarks.reproduce --trial --output /tmp/trial  # a rehearsal: minutes on a laptop

Finished jobs are kept in the work folder: after an interruption the same command goes on.
"""

import argparse
import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # one process per core, each with one thread; before torch is imported

import numpy as np
import torch
from tqdm import tqdm

from dummyforcing.analysis.head_damage import HeadDamage
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.evaluation.results import write_results
from dummyforcing.method.plan import Plan
from dummyforcing.pipeline.request import make_request
from research.studies import removal
from research.studies.damage import damage_jobs, read_damage
from research.studies.dense_path import SCORED_CHUNK
from research.studies.jobs import Job, Record, Workers
from research.studies.study import LONG_VARIANTS, Run, study_jobs, summarise_run, variants
from research.world.prompts import benchmark_scenes, return_scenes
from research.world.wording import Teller

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PARTS = ("removal", "search", "study", "long", "page")


@dataclass(frozen=True)
class Size:
    """How much is run."""

    prompts: int = 128
    repeats: int = 2
    """Videos per prompt, each from its own noise."""
    chunks: tuple[int, ...] = (2, 3, 4, 5, 6)
    """Whose calls are asked again."""
    percents: tuple[int, ...] = removal.PERCENTS
    elsewhere: int = 16
    """Training prompts on which every head's removal is measured alone, for one plan for all videos."""
    search_prompts: int = 64
    search_chunk: int = 4
    sets: int = 4
    """Sets of heads per prompt whose subsets are all tried."""
    set_size: int = 10
    frames: int = 81
    """Pixel frames of the usual video."""
    lengths: tuple[tuple[str, int, int], ...] = (("10 s", 165, 128), ("30 s", 477, 64))
    """Long videos: name, pixel frames and prompts."""
    returns: int = 32
    """Prompts whose object leaves and comes back, in the first of these lengths."""
    batch: int = 4
    """Videos made together."""


TRIAL = Size(
    prompts=2,
    repeats=1,
    chunks=(2,),
    percents=(50, 100),
    elsewhere=1,
    search_prompts=1,
    search_chunk=2,
    sets=1,
    set_size=4,
    frames=33,
    lengths=(("10 s", 33, 2), ("30 s", 45, 2)),
    returns=2,
    batch=1,
)


class Study:
    """The parts of the study; each writes a result file."""

    def __init__(self, args: argparse.Namespace, workers: Workers) -> None:
        self.args, self.workers = args, workers
        self.size = TRIAL if args.trial else Size()
        if args.repeats:
            self.size = replace(self.size, repeats=args.repeats)
        self.files = ModelFiles.open(args.model)
        for path in (args.output, args.work):
            path.mkdir(parents=True, exist_ok=True)

    @cached_property
    def alone(self) -> HeadDamage:
        """What it costs to take away the past of each head alone, on training prompts, where it is scored."""
        teller = Teller(np.random.default_rng(0))
        prompts = [teller.tell().scene.prompt for _ in range(self.size.elsewhere)]
        every_row = replace(make_request(self.files, "any", policy="dummy").policy, rows=None)
        return read_damage(self.run("alone", damage_jobs(prompts, every_row, (SCORED_CHUNK,))))

    def removal(self) -> None:
        """Take the past away from growing shares of the heads, on the dense path."""
        size, prompts = self.size, self.prompts(self.size.prompts)
        elsewhere = removal.measured_ranking(self.alone)
        jobs = []
        for seed in range(len(prompts) * size.repeats):
            prompt = prompts[seed % len(prompts)]
            work = partial(removal.measure_removal, prompt, seed, size.chunks, size.percents, elsewhere)
            jobs.append(Job(f"seed {seed}: {prompt}, chunks {size.chunks}, percents {size.percents}", work))
        self.write("removal", removal.summarise_removal(self.run("removal", jobs)))

    def search(self) -> None:
        """Try all subsets of small sets of heads."""
        size = self.size
        choice = size.search_chunk, size.sets, size.set_size, removal.measured_ranking(self.alone)
        jobs = []
        for seed, prompt in enumerate(self.prompts(size.search_prompts)):
            name = f"{prompt}, chunk {size.search_chunk}, {size.sets} sets of {size.set_size}"
            jobs.append(Job(name, partial(removal.search_subsets, prompt, seed, *choice)))
        self.write("search", removal.summarise_search(self.run("search", jobs)))

    def study(self) -> None:
        """Free rollouts of the usual length under all variants."""
        size = self.size
        scenes = tuple(benchmark_scenes(self.limited(size.prompts)))
        names = tuple(variants(self.files, self.plans))
        run = Run("5 s", size.frames, scenes, size.repeats, names, self.plans, size.batch)
        self.rollouts("study", [run])

    def long(self) -> None:
        """Long free rollouts, and returns, under the variants that matter there."""
        size = self.size
        tests = [
            (name, frames, benchmark_scenes(self.limited(count))) for name, frames, count in size.lengths
        ]
        name, frames, _ = size.lengths[0]
        tests.append((f"returns, {name}", frames, return_scenes(self.limited(size.returns))))
        batch = max(1, size.batch // 2)  # there are fewer videos for as many processes
        self.rollouts(
            "long",
            [
                Run(name, frames, tuple(scenes), 1, LONG_VARIANTS, self.plans, batch)
                for name, frames, scenes in tests
            ],
        )

    @property
    def plans(self) -> dict[str, Plan]:
        """Plans for all videos: those of the training prompts, and the one that comes with the model."""
        plans = removal.fixed_plans(self.alone, make_request(self.files, "any", policy="dummy").policy)
        shipped = (self.files.folder or Path()) / "plan.json"
        return {**plans, "shipped plan": Plan.load(shipped)} if shipped.exists() else plans

    def rollouts(self, part: str, runs: Sequence[Run]) -> None:
        """Make and measure the videos of some runs, the longest first, and sum each run up."""
        jobs = {run.name: study_jobs(run) for run in runs}
        longest_first = sorted(runs, key=lambda run: -run.frames)
        every = [job for run in longest_first for job in jobs[run.name]]
        found = dict(zip((job.name for job in every), self.run(part, every), strict=True))
        summaries = {
            run.name: summarise_run(run, [found[job.name] for job in jobs[run.name]], self.files)
            for run in runs
        }
        self.write(part, {"runs": summaries})

    def run(self, part: str, jobs: Sequence[Job]) -> list[Record]:
        """Run jobs with a progress bar; results in the order of the jobs."""
        steps = self.workers.run(jobs, self.args.work / f"{part}.jsonl")
        found = dict(tqdm(steps, part, total=len(jobs)))
        return [found[job.name] for job in jobs]

    def write(self, part: str, results: Record) -> None:
        """Write a result file."""
        path = self.args.output / f"reproduction-{part}.json"
        about = {"model": self.args.model, "trial": self.args.trial}
        write_results(path, {**about, **results}, torch.device(self.args.device))

    def page(self) -> None:
        """Draw the figures and write the page from the result files."""
        from research.pages.figures import draw_figures
        from research.pages.page import page, read_results

        docs = ROOT / "docs" if self.args.output == RESULTS else self.args.output
        results = read_results(self.args.output)
        draw_figures(results, docs / "images" / "reproduction")
        (docs / "reproduction.md").write_text(page(results))

    def prompts(self, count: int) -> list[str]:
        """The first held-out prompts."""
        return [scene.prompt for scene in benchmark_scenes(self.limited(count))]

    def limited(self, count: int) -> int:
        """At most what was asked for."""
        return min(count, self.args.limit or count)


def main() -> None:
    """Run the chosen parts in order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="all by default")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--work", type=Path, help="folder of finished jobs; runs/reproduction by default")
    parser.add_argument("--model", default="tiny", help="name or folder of a model of the rendered world")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--gpus", type=int, default=1, help="how many GPUs the processes share")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes, one per core")
    parser.add_argument("--limit", type=int, help="at most so many prompts")
    parser.add_argument("--repeats", type=int, help="videos per prompt; 2 by default")
    parser.add_argument("--trial", action="store_true", help="two prompts, short videos, coarse: a rehearsal")
    args = parser.parse_args()
    args.work = args.work or (args.output / "work" if args.trial else ROOT / "runs" / "reproduction")
    devices = [f"cuda:{i}" for i in range(args.gpus)] if args.device == "cuda" else [args.device]
    with Workers(args.model, devices, args.workers) as workers:
        study = Study(args, workers)
        try:
            for part in args.parts:
                getattr(study, part)()
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # `timeout` sends it twice
            for process in multiprocessing.active_children():
                process.terminate()
            raise SystemExit("interrupted: finished jobs are kept, the same command goes on") from None


if __name__ == "__main__":
    main()
