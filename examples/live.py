"""Watch a live video, steer it, and branch a second ending off: live.mp4, other.mp4.

dummyforcing serve &
python examples/live.py
"""

import numpy as np

from dummyforcing.client import connect
from dummyforcing.media.video import write_mp4

URL = "http://127.0.0.1:8000"
frames = {}
with connect(URL) as live:
    for chunk in live.start("a red ball bounces on a green floor", seed=1):
        print(f"track {chunk.track}, chunk {chunk.index}: {chunk.prompt}")
        frames[chunk.track, chunk.index] = chunk.frames  # one that comes again replaces the first one
        if (chunk.track, chunk.index) == (0, 3):
            live.prompt("a blue star spins on a green floor", fade=2)
            live.branch(2, "a red ball grows on a green floor")
        if {(0, 9), (1, 9)} <= frames.keys():
            break

shared = [frames[0, index] for index in range(3)]  # the branch has these chunks in common
for track, name in ((0, "live.mp4"), (1, "other.mp4")):
    write_mp4(name, np.concatenate([*shared, *(frames[track, index] for index in range(3, 10))]), fps=16)
