"""A policy of your own: a few heads of each layer see far back, the others two frames: own_policy.mp4.

python examples/own_policy.py
dummyforcing generate "a red ball bounces" --policy examples/own_policy.py:KeepFew:2
"""

from torch import Tensor

import dummyforcing
from dummyforcing import HeadContext


class KeepFew:
    """In each layer, the heads that look most at middle frames keep twelve of them."""

    def __init__(self, count: int = 2) -> None:
        self.count = count
        self.roles = {"far": HeadContext(sink=1, recent=12), "near": HeadContext(sink=1, recent=1)}

    def assign(self, scores: Tensor) -> list[list[str]]:
        """Name the role of each head; scores (layers, heads, 3): attention on first, middle, current."""
        far = scores[..., 1].topk(self.count, dim=1).indices.tolist()
        return [["far" if head in row else "near" for head in range(scores.shape[1])] for row in far]


if __name__ == "__main__":
    video = dummyforcing.load("tiny").generate("a red ball bounces", num_frames=45, policy=KeepFew())
    video.save("own_policy.mp4")
    print(f"{video.plan.counts}, {video.cache_bytes / 1e6:.1f} MB of keys and values")
