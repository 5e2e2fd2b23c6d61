"""A model on several GPUs: processes on this CPU, which make the same videos as one."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import dummyforcing
from dummyforcing.errors import BadFile, BadRequest, NoSuchDevice, RankFailed
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from tests.pipeline.elsewhere import refused_elsewhere

PROMPT = "a red ball bounces on a green floor"
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone() -> DummyForcingPipeline:
    return dummyforcing.load("tiny", device="cpu")


@pytest.fixture
def together() -> Iterator[DummyForcingPipeline]:
    pipe = dummyforcing.load("tiny", device="cpu", gpus=2)
    yield pipe
    pipe.close()


def processes(pipe: DummyForcingPipeline) -> list["subprocess.Popen[bytes]"]:
    assert pipe.parts.team is not None
    return pipe.parts.team._processes


def same(a: np.ndarray, b: np.ndarray) -> None:
    assert a.shape == b.shape
    assert np.abs(a.astype(int) - b).max() <= 1  # float32 is rounded to 8 bits


def test_steered_forked_saved_and_resumed(
    alone: DummyForcingPipeline, together: DummyForcingPipeline, tmp_path: Path
) -> None:
    runs = [pipe.start(PROMPT, num_frames=None, seed=3) for pipe in (alone, together)]

    def both(number: int = 0) -> None:
        one, other = (run.next_chunk().frames for run in runs[2 * number : 2 * number + 2])
        same(one, other)

    for _ in range(3):  # heads are classified, and dealt again
        both()
    for run in runs:
        run.set_prompt("a blue star spins", fade=2)
    runs += [run.fork() for run in runs]
    both()
    both(1)
    for name, run in zip(("alone", "together"), runs, strict=False):
        run.save(tmp_path / name)
    both()
    expected = runs[0].next_chunk().frames
    for pipe in (alone, together):
        for name in ("alone", "together"):  # a file is the same, whoever wrote it
            resumed = pipe.resume(tmp_path / name)
            resumed.next_chunk()
            same(resumed.next_chunk().frames, expected)


def test_batches_starts_and_latents(alone: DummyForcingPipeline, together: DummyForcingPipeline) -> None:
    prompts = [PROMPT, "a blue star spins"]
    one, other = (pipe.generate(prompts, num_frames=33, seed=5) for pipe in (alone, together))
    for a, b in zip(one, other, strict=True):
        same(a.frames, b.frames)
        assert a.plan.roles == b.plan.roles
    latents = [pipe(PROMPT, num_frames=21, output_type="latent").frames for pipe in (alone, together)]
    assert (latents[0] - latents[1]).abs().max() < 1e-4


def test_what_is_refused_leaves_all_as_they_were(together: DummyForcingPipeline) -> None:
    with pytest.raises(BadRequest, match="empty"):
        together.start(" ")
    run = together.start(PROMPT, num_frames=9)
    run.next_chunk()
    with pytest.raises(BadRequest, match="its length"):
        run.next_chunk()
    with pytest.raises(BadRequest, match="stays there"):
        together.to(dtype="bfloat16")
    with pytest.raises(BadRequest, match="on several GPUs already"):
        dummyforcing.load("tiny", device="cpu", gpus=2)
    assert together.generate(PROMPT, num_frames=9).frames.shape[0] == 9


def test_what_another_one_is_refused_all_are(together: DummyForcingPipeline) -> None:
    team = together.parts.team
    assert team is not None
    with pytest.raises(BadFile, match="This machine has no such file; copy it there"):
        team.make(refused_elsewhere)
    assert together.generate(PROMPT, num_frames=9).frames.shape[0] == 9


def test_one_that_dies_ends_all_with_one_sentence(together: DummyForcingPipeline) -> None:
    run = together.start(PROMPT, num_frames=None)
    run.next_chunk()
    start = time.monotonic()
    processes(together)[0].send_signal(signal.SIGKILL)
    with pytest.raises(RankFailed, match=r"process of GPU 1 ended.*SIGKILL"):
        list(run)
    assert time.monotonic() - start < 30
    with pytest.raises(RankFailed):
        together.generate(PROMPT)
    together.close()
    again = dummyforcing.load("tiny", device="cpu", gpus=2)  # nothing is in the way of another one
    assert again.generate(PROMPT, num_frames=9).frames.shape[0] == 9
    again.close()


def test_closing_ends_the_processes(together: DummyForcingPipeline) -> None:
    others = processes(together)
    together.generate(PROMPT, num_frames=9)
    together.close()
    assert [process.poll() for process in others] == [0]
    with pytest.raises(RankFailed, match="closed"):
        together.generate(PROMPT)


def test_more_gpus_than_there_are() -> None:
    with pytest.raises((NoSuchDevice, BadRequest)):
        dummyforcing.load("tiny", device="cuda", gpus=64)


PROGRAM = f"""
import dummyforcing
pipe = dummyforcing.load("tiny", device="cpu", gpus=2)
run = pipe.start("{PROMPT}", num_frames=None)
run.next_chunk()
print([process.pid for process in pipe.parts.team._processes], flush=True)
while True:
    run.next_chunk()
"""


@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_the_first_one_takes_the_others_along(signal_: signal.Signals) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        text=True,
    )
    assert first.stdout is not None
    others = [int(word) for word in first.stdout.readline().strip(" []\n").split(",")]
    first.send_signal(signal_)
    first.wait(timeout=30)
    end = time.monotonic() + 10
    while time.monotonic() < end and any(Path(f"/proc/{pid}").exists() for pid in others):
        time.sleep(0.1)
    assert not [pid for pid in others if Path(f"/proc/{pid}").exists()]


def test_under_torchrun(alone: DummyForcingPipeline, tmp_path: Path) -> None:
    """The script goes on in the first process only."""
    script = tmp_path / "make.py"
    script.write_text(
        "import dummyforcing\n"
        'pipe = dummyforcing.load("tiny", device="cpu", gpus=2)\n'
        f'pipe.generate("{PROMPT}", num_frames=21).save("{tmp_path}/made.mp4")\n'
        'print("made it")\n'
    )
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("made it") == 1
    assert (tmp_path / "made.mp4").stat().st_size > 1000
