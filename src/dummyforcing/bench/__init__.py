"""How fast a model makes videos: `dummyforcing bench`.

The real code path is timed (`Pipeline`, `Rollout`, `Session`), with real weights or with random ones of the
same shapes: speed and memory do not depend on the values.
"""
