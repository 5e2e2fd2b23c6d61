"""Speed, latency and memory of a model: `dummyforcing bench`.

The real code path is timed (pipeline, rollout, sampler), with real weights or with random ones of the same
shapes: speed and memory do not depend on the values.
"""
