"""A first video, watched while it is made, and the same as tensors and images: first.mp4.

python examples/first_video.py
"""

import dummyforcing

PROMPT = "a red ball bounces on a green floor"

pipe = dummyforcing.DummyForcingPipeline.from_pretrained("tiny")


def tell(rollout: dummyforcing.Rollout, number: int, chunk: dummyforcing.Chunk) -> None:
    """Called with every finished piece of the video."""
    size = chunk.cache_bytes / 1e6
    print(f"piece {number}: {chunk.frames.shape[1]} frames, {size:.1f} MB of keys and values")


out = pipe(PROMPT, num_frames=81, policy="dummy", seed=0, callback_on_chunk_end=tell)
out.save("first.mp4")
print(out)  # frames (1, 81, 160, 160, 3), float32 in [0, 1]
print(f"heads: {out.plans[0].counts}")

tensor = pipe(PROMPT, num_frames=21, output_type="pt").frames  # (1, 21, 3, 160, 160)
images = pipe(PROMPT, num_frames=21, output_type="pil").frames[0]  # 21 images
print(f"{tuple(tensor.shape)}, {len(images)} images of {images[0].size}")
