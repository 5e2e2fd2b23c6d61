"""A story of five prompts in 30 seconds, and a picture of all of it: story.mp4 and story.png.

python examples/story.py
"""

from pathlib import Path

import dummyforcing
from dummyforcing.media.sheet import SceneSheet
from dummyforcing.media.story import Story
from dummyforcing.media.video import VideoWriter

story = Story.load(Path(__file__).with_name("story.yaml"))
pipe = dummyforcing.load("tiny")
preset = pipe.files.preset
run = pipe.start(story.prompt, **story.options(preset))

sheet = SceneSheet(run.request.scenes, preset.pixel_frames(run.request.length), preset.fps)
with VideoWriter("story.mp4", preset.fps) as writer:
    for chunk in run:
        writer.write(chunk.frames[0])
        sheet.add(chunk.frames[0])
sheet.save("story.png")
