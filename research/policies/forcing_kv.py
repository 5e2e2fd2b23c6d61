"""Static heads see the first and the last frame, dynamic heads a window, the first layer everything.

dummyforcing generate "a red ball bounces" --policy research/policies/forcing_kv.py:ForcingKV
dummyforcing generate "a red ball bounces" --policy research/policies/forcing_kv.py:ForcingKV:1,3,9

Source: Forcing-KV (arXiv:2605.09681). A head is static if the current chunk and the frame before it have at
least 80% of its attention, the first three frames left out of the count. The paper finds that once for a
model, here each video does in its chunk 3; `heads import` reads the lists that the paper's authors publish.
Not here: dynamic heads that keep only those parts of their frames that changed, so these see more than there.
"""

from torch import Tensor

from dummyforcing import HeadContext

STATIC_SHARE = 0.8


class ForcingKV:
    """Two kinds of heads by where they look, and a first layer that is left alone."""

    first_frames = 3
    last_frames = 1
    classify_at_chunk = 3  # there are middle frames then

    def __init__(self, sink: int = 3, recent: int = 6, first_layer: int = 0) -> None:
        """Say what dynamic heads see, by default LongLive's window.

        Args:
            sink: First frames.
            recent: Most recent frames.
            first_layer: Recent frames that heads of the first layer see besides the first one; 0: all past.
        """
        whole = HeadContext(1, first_layer) if first_layer else HeadContext(0, None)
        self.roles = {"static": HeadContext(1, 1), "dynamic": HeadContext(sink, recent), "whole": whole}

    def assign(self, scores: Tensor) -> list[list[str]]:
        """Name the role of each head; scores (layers, heads, 3): first three, middle, last and current."""
        near = scores[..., 2] / scores[..., 1:].sum(-1)
        roles = [["static" if share >= STATIC_SHARE else "dynamic" for share in row] for row in near.tolist()]
        return [["whole"] * len(roles[0]), *roles[1:]]
