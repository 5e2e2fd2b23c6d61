"""Train the bundled model from nothing: text encoder, VAE and causal Wan transformer for a rendered world.

Stages go on from what the run folder holds; one command may do several, on any number of GPUs. A stage is
given its seconds in this call, and if several calls share it, its part of the schedule:

    python -m research.training.train_tiny text=60 vae=240 pretrain=150 --limit 560
    python -m research.training.train_tiny causal=480@0-0.5 --data 1 --limit 560
    python -m research.training.train_tiny causal=480@0.5-1 --data 2 --limit 560
    python -m research.training.train_tiny distill=470 --data 3 --limit 560
    python -m research.training.train_tiny own=240 vae=120 --data 4 --limit 560

(`torchrun --nproc-per-node gpu -m research.training.train_tiny ...` on several GPUs.) `carry` takes the
folder from machine to machine, `judge` judges it, `assemble` makes a preset of it.

text: what sentences say is read into the registers before them. vae: reconstruction of clips; once there is a
transformer, the decoder goes on alone. pretrain: bidirectional flow matching on single frames and first
chunks. causal: teacher forcing on whole clips; each chunk is denoised given a past that is made imperfect,
first by noise, then by the model's own reconstructions, against drift. distill: the first chunk, the one with
real freedom, learns to jump to the end of the guided teacher's path from each of the four noise levels, in
the end also from where its own steps lead; the other chunks are trained at these levels. own: chunks that
follow from the student's own ones, in videos of up to 30 s, and objects that leave and come back.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from research.training.distill import distill, own
from research.training.run import Run, Span
from research.training.stages import causal, pretrain
from research.training.text import train_text
from research.training.vae import train_vae

STAGES: dict[str, Callable[[Run, Span], None]] = {
    "text": train_text,
    "vae": train_vae,
    "pretrain": pretrain,
    "causal": causal,
    "distill": distill,
    "own": own,
}


def main(arguments: list[str] | None = None) -> None:
    """Run the stages named on the command line, in order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "stages", nargs="+", help="STAGE=SECONDS or STAGE=SECONDS@FROM-TO ..., stages: " + ", ".join(STAGES)
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/tiny"), help="folder of the run")
    parser.add_argument("--small", action="store_true", help="tiny batches and clips, to try the logic")
    parser.add_argument("--pool", type=float, default=1.0, help="fraction of the usual number of clips")
    parser.add_argument("--data", type=int, default=0, help="another number: other scenes")
    parser.add_argument(
        "--limit", type=float, default=math.inf, help="seconds of the whole call: the last stage gives way"
    )
    args = parser.parse_args(arguments)
    stages = [item.partition("=") for item in args.stages]
    spans = [(STAGES[stage], Span.parse(text)) for stage, _, text in stages]
    run = Run(args.folder, args.small, args.pool, args.data, args.limit)
    for stage, span in spans:
        stage(run, span)
        run.wait()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
