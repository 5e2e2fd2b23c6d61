"""A video twice as high as the model's own, decoded in tiles of rows: high_resolution.mp4.

python examples/high_resolution.py

Tiles spare memory and leave no seam: they give what one piece gives. Nobody has to ask for them: `pipe(...)`
decodes in as few as fit into the free memory.
"""

import torch

import dummyforcing
from dummyforcing.media.video import write_mp4
from dummyforcing.pipeline.memory import estimate
from dummyforcing.pipeline.options import VideoOptions

PROMPT = "a red ball bounces on a green floor"

pipe = dummyforcing.load("tiny")
latents = pipe(PROMPT, num_frames=21, height=320, width=160, output_type="latent").frames

request = pipe.request(PROMPT, VideoOptions(num_frames=21, height=320, width=160))
decoded = {}
for tiles in (1, 4):
    need = estimate(pipe.files, request, pipe.dtype, loaded=True, tiles=tiles)
    print(f"tiles: {tiles}, memory to decode: {need.decoding / 1e6:.0f} MB")
    decoded[tiles] = pipe.vae.stream(tiles).decode_float(latents)
largest = (decoded[1] - decoded[4]).abs().max().item()
print(f"they differ by {largest * 255:.5f} gray levels at most")

video = (decoded[4][0] * 255).round().to(torch.uint8)
write_mp4("high_resolution.mp4", video.cpu().numpy(), pipe.files.preset.fps)
