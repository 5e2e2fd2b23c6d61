"""How a long live session fares whose viewer changes the prompt all the time.

python -m research.benchmarks.live --seconds 1200 --steer 10 --output benchmarks/results/live-soak.json

What `dummyforcing bench --viewers` measures, and how long a new prompt takes until it is seen.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import get_args

from dummyforcing.runtime.threads import spin_briefly

spin_briefly()  # before torch is imported

from dummyforcing.client.viewers import measure_viewers
from dummyforcing.evaluation.results import write_results
from dummyforcing.pipeline.pipeline import load
from dummyforcing.runtime.apart import run_apart
from dummyforcing.runtime.fused import Fp8


def main() -> None:
    """Start a server, and measure."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--fp8", default="none", choices=get_args(Fp8))
    parser.add_argument("--viewers", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--steer", type=float, default=10, help="seconds between two prompts")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    pipeline = run_apart(partial(load, args.model, fp8=args.fp8))
    size = pipeline.files.preset.size
    measured = measure_viewers(pipeline, args.viewers, args.seconds, {}, steer=args.steer, report=print)
    results = {"model": args.model, "weights": "real", "fp8": args.fp8, "policy": "dummy"}
    results |= {"size": f"{size[1]}x{size[0]}", "with_vae": True, **measured}
    write_results(args.output, results, pipeline.device)


if __name__ == "__main__":
    main()
