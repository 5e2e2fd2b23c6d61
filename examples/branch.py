"""Two endings of one beginning, side by side: branch.mp4.

python examples/branch.py
"""

import torch

import dummyforcing
from dummyforcing.video import side_by_side, write_mp4

BEGINNING = "a red ball bounces on a green floor"
ENDINGS = ["a blue cube spins on a green floor", "a red ball grows on a green floor"]

pipeline = dummyforcing.load("tiny")
session = pipeline.rollout(pipeline.files.request(BEGINNING, frames=81)).session
beginning = [session.next_chunk() for _ in range(3)]

videos = []
for prompt in ENDINGS:
    branch = session.fork()
    branch.set_prompt(pipeline.text.encode([prompt]))
    latents = torch.cat([*beginning, *branch], dim=1)
    videos.append(pipeline.vae.decode(latents)[0].cpu().numpy())

write_mp4("branch.mp4", side_by_side(videos, ENDINGS), pipeline.files.preset.fps)
