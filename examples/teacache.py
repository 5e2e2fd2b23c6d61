"""Steps that a model can do without, measured; a video with and without them: plain.mp4 and teacache.mp4.

python examples/teacache.py
"""

import dummyforcing
from dummyforcing.analysis.calibration import calibrate

FRAMES = 81

pipe = dummyforcing.load("tiny")
table = calibrate(pipe, ["a red square grows", "a blue triangle spins"], error=0.01, num_frames=33)
for tried in table.sets:
    fewer = table.speed_up(tried.steps)
    print(f"without steps {tried.steps}: error {tried.error:.4f}, {fewer:.2f}x fewer passes")
print(f"chosen: {table.steps}")

for name, teacache in (("plain", None), ("teacache", table)):
    video = pipe.generate("a yellow star spins", num_frames=FRAMES, policy="dense", teacache=teacache)
    video.save(f"{name}.mp4")
    print(f"{name}: {video.timings.fps_without_vae:.1f} FPS without VAE")
