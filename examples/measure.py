"""What a policy does to a set of videos: measures with intervals, and differences pair by pair to dense.

python examples/measure.py
"""

import dummyforcing
from dummyforcing.evaluation.fidelity import compare
from dummyforcing.evaluation.suite import aggregate, differences, measure

PROMPTS = ["a red ball bounces on a green floor", "a blue star spins"]

pipe = dummyforcing.load("tiny")
videos = {
    policy: [pipe.generate(prompt, num_frames=33, policy=policy).frames for prompt in PROMPTS]
    for policy in ("dense", "dummy")
}
rows = {policy: [measure(frames) for frames in made] for policy, made in videos.items()}
for name in ("flicker", "seam_excess", "sharpness"):
    own = aggregate(rows["dummy"])[name]
    change = differences(rows["dummy"], rows["dense"])[name]
    low, high = change["interval"]
    print(f"{name}: {own['mean']:.3f}, to dense {change['mean']:+.3f} ({low:+.3f} to {high:+.3f})")

near = aggregate([compare(*pair) for pair in zip(videos["dummy"], videos["dense"], strict=True)])
print(f"PSNR to the dense videos: {near['psnr']['mean']:.1f} dB")
