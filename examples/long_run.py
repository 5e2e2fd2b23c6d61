"""A minute of video, watched while it grows; heads that look elsewhere are classified again: long.mp4.

python examples/long_run.py
"""

import dummyforcing
from dummyforcing.media.video import VideoWriter

SECONDS, EVERY = 60, 10

pipe = dummyforcing.load("tiny")
fps = pipe.files.preset.fps
run = pipe.start(
    "a red ball bounces on a green floor",
    seconds=SECONDS,
    switches=[(SECONDS / 2, "a blue star spins on a yellow floor")],
    guard=dummyforcing.Guard(every=20, tolerance=0.01),
)
found, told = None, 0
with VideoWriter("long.mp4", fps) as writer:
    for chunk in run:
        writer.write(chunk.frames[0])
        seconds, measures = chunk.timings.pixel_frames / fps, chunk.measures[0]
        if chunk.plans[0].chunk != found:
            found = chunk.plans[0].chunk
            print(f"{seconds:4.0f} s: heads classified in chunk {found}")
        if seconds >= told + EVERY:
            told += EVERY
            print(
                f"{seconds:4.0f} s: drift {measures.drift:.1f} gray levels, "
                f"repetition {measures.repetition:.2f}, motion {measures.motion:.2f}"
            )
