"""One cost, spent on 12 frames in all heads or on a long past in a few: window.mp4 and long.mp4.

python examples/long_context.py
"""

import dummyforcing

FRAMES = 249
BUDGET = "window:12"  # or the size of the KV cache, such as "15MB"

pipe = dummyforcing.load("tiny")
for policy, budget in (("window:3,6", None), ("long", BUDGET)):
    video = pipe.generate(
        "a red ball bounces on a green floor", num_frames=FRAMES, policy=policy, budget=budget
    )
    video.save(f"{policy.partition(':')[0]}.mp4")
    contexts = [context for layer in video.plan.contexts for context in layer]
    longest = max(context.total or 0 for context in contexts)
    print(
        f"{policy}: {video.cache_bytes / 1e6:.1f} MB of keys and values, "
        f"{sum(context.total == longest for context in contexts)} of {len(contexts)} heads see {longest} "
        f"past frames, {video.timings.fps_without_vae:.1f} FPS without VAE"
    )
