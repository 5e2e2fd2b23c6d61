"""Which denoising steps the model can do without, measured on two prompts; then a video with and without.

python examples/teacache.py
"""

import dummyforcing
from dummyforcing.analysis.calibration import calibrate

pipeline = dummyforcing.load("tiny")
table = calibrate(pipeline, ["a red square grows", "a blue triangle spins"], error=0.01, num_frames=33)
for tried in table.sets:
    fewer = table.speed_up(tried.steps)
    print(f"without steps {tried.steps}: error {tried.error:.4f}, {fewer:.2f}x fewer passes")
print(f"chosen: {table.steps}")

for name, teacache in (("plain", None), ("teacache", table)):
    video = pipeline.generate("a yellow star spins", policy="dense", teacache=teacache)
    video.save(f"{name}.mp4")
    print(f"{name}: {video.timings.fps_without_vae:.1f} FPS without VAE")
