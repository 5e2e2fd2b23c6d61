"""One table decides: which policy is `generate`'s default, at equal cost, from 5 seconds to a minute.

python -m research.benchmarks.policies --model tiny --device cuda --workers 15 \
    --seconds 5 10 30 60 --count 128 128 64 48 --output benchmarks/results/policies.json

Every policy gets the same prompts and the same noise. What is finished is kept in the work folder: the same
command goes on, also after `--minutes`, when no more work is begun. `--so-far` sums up what is there.
"""

import argparse
import hashlib
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # one process per core, each with one thread; before torch is imported

import torch
from tqdm import tqdm

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.evaluation.results import write_results
from research.pages.policies import section
from research.studies.damage import damage_jobs, read_damage
from research.studies.jobs import Job, Record, Workers
from research.studies.policies import (
    Length,
    candidates,
    damage_plans,
    described,
    role_policies,
    summarise,
    time_jobs,
    video_jobs,
)
from research.world.prompts import benchmark_scenes

ROOT = Path(__file__).parents[2]
WORK = ROOT / "runs" / "policies"
TRAINING_PROMPTS = ROOT / "research" / "training" / "plan_prompts.txt"


class Benchmark:
    """The stages; what each has finished is in its journal."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.files = args, ModelFiles.open(args.model)
        self.until = time.monotonic() + 60 * args.minutes
        self.devices = [f"cuda:{i}" for i in range(args.gpus)] if args.device == "cuda" else [args.device]
        # Another model of the same name must not go on with this one's results.
        self.work: Path = args.work / f"{self.files.preset.name}-{digest(self.files.folder)}"
        self.work.mkdir(parents=True, exist_ok=True)
        preset, counts = self.files.preset, args.count * (len(args.seconds) if len(args.count) == 1 else 1)
        self.lengths = [
            Length(seconds, preset.pixel_frames_for(seconds), tuple(benchmark_scenes(count)))
            for seconds, count in zip(args.seconds, counts, strict=True)
        ]

    def run(self) -> None:
        """Measure what is missing, and write the results if nothing is, or those so far."""
        args, prompts = self.args, TRAINING_PROMPTS.read_text(encoding="utf-8").splitlines()
        base = role_policies(self.files)["dummy"]
        jobs = damage_jobs(prompts[: args.calibrated_on], base, folder=self.work)
        with Workers(args.model, self.devices, args.workers) as workers:
            damage = self.stage("damage", workers, jobs)
            self.require_all(jobs, damage)
            plans = damage_plans(read_damage([damage[job.name] for job in jobs]), self.files)
            table = candidates(self.files, plans)
            # By itself, and in the dtype that users have on such a device.
            timed = time_jobs(table, benchmark_scenes(1)[0].prompt, self.lengths)
            with Workers(args.model, self.devices[:1], 1, dtype=None) as alone:
                times = self.stage("time", alone, timed)
            self.require_all(timed, times)
            videos = video_jobs(self.files, plans, self.lengths, list(table), args.batch)
            found = self.stage("videos", workers, list(videos.values()))
        if not args.so_far:
            self.require_all(list(videos.values()), found)
        made = {key: found[job.name] for key, job in videos.items() if job.name in found}
        results = {
            "model": args.model,
            "calibrated_on": args.calibrated_on,
            "policies": described(
                table, {name: times[job.name] for name, job in zip(table, timed, strict=True)}
            ),
            "lengths": summarise(self.lengths, table, made),
        }
        write_results(args.output, results, torch.device(args.device))
        print(section(results))

    def stage(self, name: str, workers: Workers, jobs: Sequence[Job]) -> dict[str, Record]:
        """Run what the journal does not have, while there is time; results by the names of their jobs."""
        steps = workers.run(jobs, self.work / f"{name}.jsonl", self.until)
        return dict(tqdm(steps, name, total=len(jobs)))

    def require_all(self, jobs: Sequence[Job], found: dict[str, Record]) -> None:
        """End where jobs are left."""
        if left := sum(job.name not in found for job in jobs):
            raise SystemExit(f"{left} of {len(jobs)} jobs are left: the same command goes on")


def digest(folder: Path | None) -> str:
    """Of all files of a model's folder, 8 hexadecimal digits; `files` for a model that is no folder."""
    if folder is None:
        return "files"
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(path.relative_to(folder).as_posix().encode())
        total.update(path.read_bytes())
    return total.hexdigest()[:8]


def main() -> None:
    """Read the options, and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help="name or folder of a model of the rendered world")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--gpus", type=int, default=1, help="how many GPUs the processes share")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes, one per core")
    parser.add_argument(
        "--seconds", type=int, nargs="+", default=[5, 10, 30, 60], help="lengths of the videos"
    )
    parser.add_argument(
        "--count", type=int, nargs="+", default=[128, 128, 64, 48], help="prompts, for each length or for all"
    )
    parser.add_argument("--batch", type=int, default=4, help="videos made together")
    parser.add_argument(
        "--calibrated-on", type=int, default=8, help="training prompts on which damage is measured"
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no more work after these")
    parser.add_argument("--so-far", action="store_true", help="sum up the pairs that all policies have")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "policies", help="folder of finished jobs"
    )
    parser.add_argument("--output", type=Path, required=True, help="result file")
    args = parser.parse_args()
    if len(args.count) not in (1, len(args.seconds)):
        parser.error("--count takes one number, or one for each length")
    Benchmark(args).run()


if __name__ == "__main__":
    main()
