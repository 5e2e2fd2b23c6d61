"""A story of five prompts in 30 seconds, and a picture of all of it: story.mp4 and story.png.

python examples/story.py
"""

from pathlib import Path

import dummyforcing
from dummyforcing.media.sheet import SceneSheet
from dummyforcing.media.story import Story
from dummyforcing.media.video import VideoWriter
from dummyforcing.pipeline.request import make_request

story = Story.load(Path(__file__).with_name("story.yaml"))
pipeline = dummyforcing.load("tiny")
preset = pipeline.files.preset
request = make_request(pipeline.files, story.prompt, **story.options(preset))

sheet = SceneSheet(request.scenes, preset.pixel_frames(request.length), preset.fps)
with VideoWriter("story.mp4", preset.fps) as writer:
    for chunk in pipeline.run(request):
        writer.write(chunk.frames[0])
        sheet.add(chunk.frames[0])
sheet.save("story.png")
