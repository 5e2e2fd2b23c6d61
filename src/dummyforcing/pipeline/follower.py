"""A process of another GPU: does what that of rank 0 tells it; see `team.py`."""

import os
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from threading import Thread
from typing import Any

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.errors import BadRequest, NoSuchDevice, UserError
from dummyforcing.pipeline.devices import choose_device
from dummyforcing.pipeline.loading import load_parts
from dummyforcing.pipeline.options import LoadOptions
from dummyforcing.pipeline.parts import Parts
from dummyforcing.pipeline.rollout import Rollout
from dummyforcing.pipeline.team import Team, ends_with, here, join, under_torchrun
from dummyforcing.runtime.ranks import Ranks


def follow(ranks: Ranks) -> None:
    """Do what rank 0 does, until it ends.

    What it is refused is refused here, too, and left at that.
    """
    models: dict[int, Parts] = {}
    rollouts: dict[int, Rollout] = {}
    while True:
        number, what, args, forgotten = ranks.share(_nothing)
        for old in forgotten:
            rollouts.pop(old, None)
        if what == "end":
            return
        try:
            if what == "make":
                models[number] = ranks.make(partial(args[0], ranks))
            elif what == "start":
                rollouts[number] = Rollout(models[args[0]], *args[1:])
            elif what == "fork":
                rollouts[args[0]] = rollouts[number].fork()
            else:
                getattr(rollouts[number], what)(*args)
        except UserError:
            continue


def load_together(files: ModelFiles, options: LoadOptions) -> Parts:
    """Load a model on several GPUs; under torchrun, ranks other than 0 follow it and exit.

    Raises:
        UserError: If there are not as many GPUs, parts were handed in, or the model cannot be loaded.
    """
    for name in ("vae", "transformer", "text_encoder"):
        if isinstance(getattr(options, name), torch.nn.Module):
            raise BadRequest("A part that is handed in is on one GPU", "give files, or take gpus=1", name)
    uses_gpus = choose_device(options.device).type == "cuda"
    if options.device == "auto" and not uses_gpus:
        raise NoSuchDevice(
            f"{options.gpus} GPUs are asked for, and this machine has none",
            'take gpus=1, or device="cpu" for as many processes',
            "gpus",
        )
    if under_torchrun() and os.environ["RANK"] != "0":
        join(int(os.environ["RANK"]), options.gpus, uses_gpus)
        follow(Ranks())
        raise SystemExit(0)
    team = Team(options.gpus, uses_gpus)
    try:
        return make_together(team, partial(load_parts, files, options))
    except BaseException:
        team.end()
        raise


def make_together(team: Team, make: Callable[[Ranks], Parts]) -> Parts:
    """Load a model on all GPUs of a team.

    Args:
        team: The processes of the other GPUs.
        make: Loads it on one of them; can be pickled.

    Raises:
        UserError: If it cannot be loaded.
    """
    parts, key = team.make(make)
    return replace(parts, team=team, key=key)


def _nothing() -> Any:
    raise AssertionError("rank 0 says what is done")


def main() -> None:
    """Join the processes of the other GPUs, and follow; last words go to what rank 0 reads."""
    port, size, rank = (int(word) for word in sys.argv[1:4])
    uses_gpus = sys.argv[4] == "gpu"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 ends this one
    warnings.simplefilter("ignore")  # it says them
    last_words, sys.stdout = sys.stdout, sys.stderr
    Thread(target=ends_with, args=(os.getppid(),), daemon=True).start()
    try:
        store = TCPStore("127.0.0.1", port, size, is_master=False)
        store.set(here(rank), "")
        join(rank, size, uses_gpus, store)
        follow(Ranks())
    except Exception as error:
        print(f"{type(error).__name__}: {error}".splitlines()[0], file=last_words, flush=True)
        os._exit(1)  # others wait in what it has left
    os._exit(0)


if __name__ == "__main__":
    main()
