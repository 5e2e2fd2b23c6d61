"""A model of your own as a folder, here the bundled one with another default policy: own.mp4.

python examples/own_model.py
"""

import json
import tempfile
from pathlib import Path

import dummyforcing

with tempfile.TemporaryDirectory() as parent:
    # Text encoder, tokenizer, transformer and VAE, and preset.json, which says how to run them.
    folder = Path(parent) / "my-model"
    dummyforcing.load("tiny").save_pretrained(folder)

    preset = json.loads((folder / "preset.json").read_text())
    preset |= {"name": "my-model", "options": {"policy": "anchored"}}
    (folder / "preset.json").write_text(json.dumps(preset))

    pipe = dummyforcing.DummyForcingPipeline.from_pretrained(folder)
    video = pipe.generate("a red ball bounces on a green floor", num_frames=33)

video.save("own.mp4")
print(f"policy {video.plan.policy}: {video.plan.counts}")
