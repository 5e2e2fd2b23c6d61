"""A video without end whose prompt changes while it is made, saved and taken up again: steer.mp4.

python examples/steer.py
"""

import tempfile
from pathlib import Path

import numpy as np

import dummyforcing
from dummyforcing.media.video import write_mp4

pipe = dummyforcing.load("tiny")
run = pipe.start("a red ball bounces on a green floor", num_frames=None, policy="window:3,6")
frames = [run.next_chunk().frames[0] for _ in range(4)]

run.set_prompt("a blue ball bounces on a green floor", fade=2)
frames += [run.next_chunk().frames[0] for _ in range(4)]

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "ball.rollout"
    run.save(path)  # the state of this video, not the model
    print(f"saved after {run.frames} latent frames: {path.stat().st_size / 1e6:.1f} MB")
    again = pipe.resume(path)  # here or in another process: the same video, bit by bit

assert np.array_equal(again.next_chunk().frames, run.next_chunk().frames)
again.set_prompt("a blue ball grows on a green floor")
frames += [again.next_chunk().frames[0] for _ in range(4)]

write_mp4("steer.mp4", np.concatenate(frames), pipe.files.preset.fps)
