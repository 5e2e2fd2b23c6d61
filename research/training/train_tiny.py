"""Train the bundled model from nothing: VAE, text encoder and causal Wan transformer for a rendered world.

Stages are resumable from the run folder; one command may do several, on any number of GPUs:

    torchrun --nproc-per-node gpu tools/train_tiny.py vae=220 pretrain=270 --folder runs/tiny
    torchrun --nproc-per-node gpu tools/train_tiny.py causal=270 distill=220 --folder runs/tiny

vae: reconstruction of short clips. pretrain: bidirectional flow matching on single frames and first chunks.
causal: teacher forcing on whole clips; each chunk is denoised given a past that is made imperfect, first by
noise, then by the model's own reconstructions, against drift. distill: the first chunk, the one with real
freedom, learns to jump to the end of the guided teacher's trajectory from each of the four noise levels; the
other chunks are trained at these levels.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from research.training.run import Run
from research.training.stages import causal, distill, judge, pretrain
from research.training.text import train_text
from research.training.vae import train_vae

STAGES: dict[str, Callable[[Run, float], None]] = {
    "text": train_text,
    "vae": train_vae,
    "pretrain": pretrain,
    "causal": causal,
    "distill": distill,
    "judge": judge,
}


def main() -> None:
    """Run the stages named on the command line, in order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="+", help="STAGE=SECONDS ..., stages: " + ", ".join(STAGES))
    parser.add_argument("--folder", type=Path, default=Path("runs/tiny"), help="folder of the run")
    parser.add_argument("--small", action="store_true", help="tiny batches and clips, to try the logic")
    parser.add_argument("--pool", type=float, default=1.0, help="fraction of the usual number of clips")
    parser.add_argument("--data", type=int, default=0, help="another number: other scenes")
    args = parser.parse_args()
    run = Run(args.folder, args.small, args.pool, args.data)
    for item in args.stages:
        stage, _, seconds = item.partition("=")
        STAGES[stage](run, float(seconds))
        if dist.is_initialized():
            dist.barrier()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
