"""A video twice as high as the model's own, decoded in bands of rows: high_resolution.mp4.

python examples/high_resolution.py

Bands spare memory and leave no seam: they give what one piece gives. Nobody has to ask for them: `generate`
takes as few as fit into the free memory, and so does `stream()` without a number.
"""

import torch

import dummyforcing
from dummyforcing.media.video import write_mp4

HEIGHT, WIDTH, BANDS = 320, 160, 4

pipeline = dummyforcing.load("tiny")
request = pipeline.files.request("a red ball bounces on a green floor", frames=21, size=(HEIGHT, WIDTH))
for bands in (1, BANDS):
    need = pipeline.files.estimate(request, pipeline.dtype, loaded=True, bands=bands)
    print(f"bands: {bands}, memory to decode: {need.decoding / 1e6:.0f} MB")

whole, banded = pipeline.vae.stream(bands=1), pipeline.vae.stream(BANDS)
pieces, largest = [], 0.0
for latents in pipeline.rollout(request).session:
    pieces.append(banded.decode_float(latents))
    largest = max(largest, (pieces[-1] - whole.decode_float(latents)).abs().max().item())
print(f"they differ by {largest * 255:.5f} gray levels at most")

video = (torch.cat(pieces, dim=1)[0] * 255).round().to(torch.uint8)
write_mp4("high_resolution.mp4", video.cpu().numpy(), pipeline.files.preset.fps)
