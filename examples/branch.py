"""Two endings of one beginning, side by side: branch.mp4.

python examples/branch.py
"""

import torch

import dummyforcing
from dummyforcing.media.montage import side_by_side
from dummyforcing.media.video import write_mp4
from dummyforcing.pipeline.request import make_request

ENDINGS = ["shrinks", "grows"]

pipeline = dummyforcing.load("tiny")
session = pipeline.rollout(make_request(pipeline.files, "a red ball bounces on a green floor")).sampler
beginning = [session.next_chunk() for _ in range(3)]

videos = []
for ending in ENDINGS:
    branch = session.fork()
    branch.set_prompt(pipeline.text.encode([f"a red ball {ending} on a green floor"]))
    latents = torch.cat([*beginning, *branch], dim=1)
    videos.append(pipeline.vae.decode(latents)[0].cpu().numpy())

write_mp4("branch.mp4", side_by_side(videos, ENDINGS), pipeline.files.preset.fps)
