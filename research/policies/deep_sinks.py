"""Deep sinks: a large share of the window are first frames, in every head.

dummyforcing generate "a red ball bounces" --policy research/policies/deep_sinks.py:deep_sinks
dummyforcing generate "a red ball bounces" --policy research/policies/deep_sinks.py:deep_sinks:7

Source: Deep Forcing (arXiv:2512.05081), whose Deep Sink gives 10 of the 21 frames of Self-Forcing's window to
first frames. Not here: first frames that move along with the video (a matter of the model's preset, see
`local_attention_size`), and Participative Compression, which drops single tokens of the others.
"""

from dummyforcing import HeadContext, Policy


def deep_sinks(window: int = 21, current: int = 3) -> Policy:
    """Half of a window, rounded down, are first frames.

    Args:
        window: Latent frames that attention spans, the current ones included.
        current: How many of them are denoised together.
    """
    first = window // 2
    return Policy("deep-sinks", HeadContext(first, window - first - current))
