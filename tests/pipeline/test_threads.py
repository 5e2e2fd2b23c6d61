"""Several threads make videos with one pipeline, each as it is alone."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dummyforcing.pipeline.pipeline import load
from dummyforcing.runtime.apart import run_apart

PROMPTS = ["a red ball", "a blue cube spins", "a red cube on a green floor", "a ball"]
POLICIES = ["dummy", "dense", "window:1,2", "keyframes:1,1,1", "anchored"]


def test_every_thread_gets_its_video(model_folder: Path) -> None:
    pipeline = load(model_folder)

    def make(number: int) -> np.ndarray:
        one = pipeline.start(
            PROMPTS[number % 4], num_frames=None, seed=number, policy=POLICIES[number % 4], size=(32, 48)
        )
        frames = [one.next_chunk().frames]
        one.set_prompt(PROMPTS[(number + 1) % 4], fade=2)
        frames += [one.next_chunk().frames for _ in range(2)]
        return np.concatenate(frames, 1)

    alone = [make(number) for number in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(make, [*range(4)] * 2))
    finally:
        sys.setswitchinterval(interval)
    for number, frames in enumerate(together):
        np.testing.assert_array_equal(frames, alone[number % 4])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "3000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_threads_of_kernels_spin_briefly_before_torch_is_there(
    given: dict[str, str], expected: str | None
) -> None:
    """The library sets it as the command line does, unless somebody else did."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    code = (
        "import os, sys\n"
        "import dummyforcing\n"
        "print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", str(expected)]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
@pytest.mark.parametrize(("how", "left"), [("run_apart(work)", 0), ("work()", 1)])
def test_what_runs_apart_leaves_no_threads_of_kernels(how: str, left: int) -> None:
    code = (
        "import os, time, torch\n"
        "from dummyforcing.runtime.apart import run_apart\n"
        "torch.set_num_threads(2)\n"
        "def work():\n"
        "    torch.set_num_threads(2)\n"
        "    return torch.ones(4_000_000).sin().shape\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        f"assert {how} == (4_000_000,)\n"
        "end = time.monotonic() + 3\n"  # a thread is there a little longer than it can be waited for
        "while (left := len(os.listdir('/proc/self/task')) - before) and time.monotonic() < end:\n"
        "    time.sleep(0.01)\n"
        "print(left)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == left


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_what_runs_apart_ends_with_a_signal() -> None:
    """In the middle of kernels, and before the interpreter ends: it would be aborted there."""
    code = (
        "import signal, sys, torch\n"
        "from dummyforcing.runtime.apart import run_apart\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "def work():\n"
        "    print('begun', flush=True)\n"
        "    while True:\n"
        "        torch.ones(1_000_000).sin()\n"
        "run_apart(work)\n"
    )
    for wait in (0.0, 0.01, 0.05):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        time.sleep(wait)
        process.terminate()
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, b"")


def test_what_goes_wrong_apart_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        run_apart(lambda: 1 / 0)


def test_a_program_that_has_torch_already_is_left_alone() -> None:
    code = (
        "import os, sys, types\n"
        "sys.modules['torch'] = types.ModuleType('torch')\n"
        "import dummyforcing\n"
        "print(os.environ.get('GOMP_SPINCOUNT'))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "None"
