"""Processes for the other GPUs: they do what the first one does, in step, as it tells them.

The process of rank 0 makes and steers videos as ever. Before it does anything that needs all GPUs it says so,
and the others do the same with rollouts of their own (`follower.py`); what each computes, `runtime/ranks.py`
exchanges. Under torchrun the processes are there; else rank 0 starts them.
"""

import atexit
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pickle import PicklingError
from threading import Thread
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from dummyforcing.errors import BadRequest, NoSuchDevice, RankFailed
from dummyforcing.runtime.ranks import Ranks

Made = TypeVar("Made")

ENDLESS = timedelta(days=365)
"""Processes wait for each other as long as they live; that one died is told by its connection."""
FREE_WITHIN = 10.0
"""Seconds that a GPU has to stop waiting for another one."""
ENDS_WITHIN = 5.0
"""Seconds that processes have to end when they are asked to."""


class Team:
    """The processes of the other GPUs."""

    def __init__(self, size: int, uses_gpus: bool) -> None:
        """Start them, or join those that torchrun started.

        Args:
            size: How many GPUs there are, this process's included.
            uses_gpus: Whether they compute on GPUs; else on the CPU.

        Raises:
            NoSuchDevice: If there are fewer GPUs.
            BadRequest: If torchrun started another number, or another model has a team in this process.
            RankFailed: If they don't start.
        """
        if uses_gpus and torch.cuda.device_count() < size and not under_torchrun():
            raise NoSuchDevice(
                f"{size} GPUs are asked for, and this machine has {torch.cuda.device_count()}",
                f"take gpus={torch.cuda.device_count()} at most",
                "gpus",
            )
        if under_torchrun() and int(os.environ["WORLD_SIZE"]) != size:
            raise BadRequest(
                f"torchrun started {os.environ['WORLD_SIZE']} processes, and {size} GPUs are asked for",
                f"take gpus={os.environ['WORLD_SIZE']}, or torchrun --nproc-per-node {size}",
                "gpus",
            )
        if dist.is_initialized():
            raise BadRequest(
                "This process has a model on several GPUs already",
                "close() it first, or take one GPU",
                "gpus",
            )
        self._failure: str | None = None
        self._is_ending = False
        self._processes: list[subprocess.Popen[bytes]] = []
        self._count = 0
        self._forgotten: list[int] = []
        if under_torchrun():
            self._store = join(0, size, uses_gpus)
        else:
            self._store = TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False)
            command = [sys.executable, "-m", "dummyforcing.pipeline.follower"]
            environment = {**os.environ, "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}
            for rank in range(1, size):
                place = [str(self._store.port), str(size), str(rank), "gpu" if uses_gpus else "cpu"]
                arguments = [*command, *place]
                self._processes.append(
                    subprocess.Popen(
                        arguments, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
                    )
                )
            self._wait_until_there(size)
            Thread(target=self._watch, args=(weakref.ref(self), self._processes), daemon=True).start()
            join(0, size, uses_gpus, self._store)
        self.ranks = Ranks()
        atexit.register(self.end)

    def _wait_until_there(self, size: int) -> None:
        """Wait until all processes have started."""
        for rank in range(1, size):
            while not self._store.check([here(rank)]):
                self._note_end()
                self.check()
                time.sleep(0.05)

    @staticmethod
    def _watch(team: "weakref.ref[Team]", processes: list[subprocess.Popen[bytes]]) -> None:
        """Wait until a process ends; if it was not asked to, nobody waits for it any longer."""
        while all(process.poll() is None for process in processes):
            time.sleep(0.2)
        if (owner := team()) is not None:
            owner._note_end()

    def _note_end(self) -> None:
        ended = [(n, p.returncode) for n, p in enumerate(self._processes, 1) if p.poll() is not None]
        if self._is_ending or self._failure is not None or not ended:
            return
        rank, code = ended[0]
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        pipe = self._processes[rank - 1].stdout
        said = pipe.read().decode().strip() if pipe else ""
        self._failure = f"The process of GPU {rank} ended ({said or how})"
        self._kill()
        if torch.cuda.is_available():
            self._free_gpu()

    def _free_gpu(self) -> None:
        """Have this GPU stop waiting for one that is gone, or end this process, which waits for it."""
        with suppress(Exception):  # it has no public name
            dist.distributed_c10d._abort_process_group()
        waits = Thread(target=torch.cuda.synchronize, daemon=True)
        waits.start()
        waits.join(FREE_WITHIN)
        if waits.is_alive():
            print(self._error(), file=sys.stderr, flush=True)
            os._exit(1)

    def make(self, make: Callable[[Ranks], Made]) -> tuple[Made, int]:
        """Make something on all GPUs.

        Args:
            make: Makes this GPU's; can be pickled.

        Returns:
            It, and what the others know theirs by.

        Raises:
            UserError: If it cannot be made on one of them.
        """
        self._count += 1
        number = self._count
        with self.together(number, "make", make):
            return self.ranks.make(lambda: make(self.ranks)), number

    def new_number(self, owner: object) -> int:
        """A number for a rollout, which the others forget when it is gone here."""
        self._count += 1
        weakref.finalize(owner, self._forgotten.append, self._count)
        return self._count

    def tell(self, number: int, what: str, *args: Any) -> None:
        """Tell the others what this process does next.

        Args:
            number: Of a rollout.
            what: A method of it, or one of `follower.py`'s words.
            *args: Its arguments.

        Raises:
            RankFailed: If a process ended.
        """
        self.check()
        forgotten, self._forgotten[:] = list(self._forgotten), []
        try:
            self.ranks.share(lambda: (number, what, args, forgotten))
        except (PicklingError, AttributeError, TypeError) as error:
            raise BadRequest(
                f"What is asked for cannot be told to the processes of other GPUs ({error})",
                "take gpus=1, or policies that are defined in a module",
                "gpus",
            ) from error

    @contextmanager
    def together(self, number: int, what: str, *args: Any) -> Iterator[None]:
        """Tell the others to do what is done inside.

        Raises:
            RankFailed: If a process ends meanwhile.
        """
        try:
            self.tell(number, what, *args)
            yield
        except RuntimeError as error:
            for _ in range(int(ENDS_WITHIN / 0.1)):
                if self._failure is not None:
                    raise self._error() from error
                time.sleep(0.1)
            self._fail(f"An error on the first GPU ended the work of all ({type(error).__name__})")
            raise
        except (KeyboardInterrupt, SystemExit):
            self._fail("The work of all GPUs was interrupted")
            raise
        self.check()

    def check(self) -> None:
        """Refuse to go on if a process has ended.

        Raises:
            RankFailed: If one has.
        """
        if self._failure is not None:
            raise self._error()

    def _fail(self, why: str) -> None:
        self._failure = self._failure or why
        self._kill()

    def _error(self) -> RankFailed:
        return RankFailed(
            self._failure or "The processes of the other GPUs did not start", "load the model again"
        )

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()

    def end(self) -> None:
        """End the processes; the model cannot be used any more."""
        atexit.unregister(self.end)
        self._is_ending = True
        is_whole = self._failure is None
        if is_whole:
            with suppress(RankFailed, RuntimeError):
                self.tell(0, "end")
            self._failure = "The model was closed"
        limit = time.monotonic() + ENDS_WITHIN
        for process in self._processes:
            try:
                process.wait(max(0.0, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if not dist.is_initialized():
            return
        if is_whole or not torch.cuda.is_available():
            dist.destroy_process_group()
        else:  # which can wait without end for a GPU that is gone, here and when the interpreter ends
            atexit.register(os._exit, 1)


def here(rank: int) -> str:
    """What a process says in the store when it has started."""
    return f"rank {rank} is here"


def under_torchrun() -> bool:
    """Whether torchrun, or something like it, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def join(rank: int, size: int, uses_gpus: bool, store: Any = None) -> Any:
    """Make this process one of several; its GPU is that of its number.

    Args:
        rank: Its number.
        size: How many there are.
        uses_gpus: Whether they compute on GPUs.
        store: Where they meet; None: where torchrun says.

    Returns:
        The store.
    """
    device = None
    if uses_gpus:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)) if store is None else rank)
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if uses_gpus else "gloo"
    if store is None:
        dist.init_process_group(backend, timeout=ENDLESS, device_id=device)
        return dist.distributed_c10d._get_default_store()
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=ENDLESS, device_id=device
    )
    return store


def ends_with(process: int, end: Callable[[int], Any] = os._exit) -> None:
    """End this process when another one, its parent, has ended."""
    while os.getppid() == process:
        time.sleep(0.5)
    end(1)
