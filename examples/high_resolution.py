"""A video twice as high as the model's own, decoded in tiles of rows: high_resolution.mp4.

python examples/high_resolution.py

Tiles spare memory and leave no seam: they give what one piece gives. Nobody has to ask for them: `generate`
takes as few as fit into the free memory, and so does `stream()` without a number.
"""

import torch

import dummyforcing
from dummyforcing.media.video import write_mp4
from dummyforcing.pipeline.memory import estimate
from dummyforcing.pipeline.request import make_request

HEIGHT, WIDTH, TILES = 320, 160, 4

pipeline = dummyforcing.load("tiny")
request = make_request(
    pipeline.files, "a red ball bounces on a green floor", num_frames=21, size=(HEIGHT, WIDTH)
)
for tiles in (1, TILES):
    need = estimate(pipeline.files, request, pipeline.dtype, loaded=True, tiles=tiles)
    print(f"tiles: {tiles}, memory to decode: {need.decoding / 1e6:.0f} MB")

whole, tiled = pipeline.vae.stream(tiles=1), pipeline.vae.stream(TILES)
pieces, largest = [], 0.0
for latents in pipeline.rollout(request).sampler:
    pieces.append(tiled.decode_float(latents))
    largest = max(largest, (pieces[-1] - whole.decode_float(latents)).abs().max().item())
print(f"they differ by {largest * 255:.5f} gray levels at most")

video = (torch.cat(pieces, dim=1)[0] * 255).round().to(torch.uint8)
write_mp4("high_resolution.mp4", video.cpu().numpy(), pipeline.files.preset.fps)
