"""Two endings of one beginning, side by side: branch.mp4.

python examples/branch.py
"""

import numpy as np

import dummyforcing
from dummyforcing.media.montage import side_by_side
from dummyforcing.media.video import write_mp4

FRAMES = 81
ENDINGS = ["shrinks", "grows"]

pipe = dummyforcing.load("tiny")
run = pipe.start("a red ball bounces on a green floor", num_frames=FRAMES)
beginning = [run.next_chunk().frames[0] for _ in range(3)]

videos = []
for ending in ENDINGS:
    branch = run.fork()  # with a cache and a decoder of its own; `run` stays where it is
    branch.set_prompt(f"a red ball {ending} on a green floor")
    videos.append(np.concatenate([*beginning, *(chunk.frames[0] for chunk in branch)]))

write_mp4("branch.mp4", side_by_side(videos, ENDINGS), pipe.files.preset.fps)
