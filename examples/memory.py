"""A red ring comes back after ten seconds: memory-dense.mp4, memory-window.mp4 and memory-keyframes.mp4.

python examples/memory.py

Only the first prompt names the ring: a cache that has lost the beginning brings back another object, or none.
"""

import dummyforcing

FRAMES = 297
SWITCHES = [(2.8, "leaves"), (14.8, "comes back")]  # seconds from the start, and the prompt from then on

pipe = dummyforcing.load("tiny")
for policy in ("dense", "window:0,9", "keyframes"):
    video = pipe.generate(
        "a red ring stays still on a green floor", num_frames=FRAMES, policy=policy, switches=SWITCHES
    )
    video.save(f"memory-{policy.partition(':')[0]}.mp4")
    print(f"{policy}: {video.cache_bytes / 1e6:.0f} MB of keys and values")
