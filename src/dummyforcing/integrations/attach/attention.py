"""The self-attention of every block, with a cache of ours; projections and norms stay those of its module."""

from collections.abc import Callable
from inspect import signature
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from dummyforcing.errors import BadRequest
from dummyforcing.integrations.attach.families import Upstream, arguments, require_no_gradients, told
from dummyforcing.integrations.attach.follower import FollowedVideo, Follower, Grid, Pass


class SeenPasses:
    """Tells the follower of every pass that the transformer makes."""

    def __init__(self, upstream: Upstream, follower: Follower) -> None:
        """Watch nothing yet.

        Args:
            upstream: The transformer, and what is around it.
            follower: Keeps the memory of its videos.
        """
        self.upstream, self.follower = upstream, follower
        self.size = (0, 0, 0)
        """Latent frames, rows and columns of the present pass's patch grid."""
        self.layers = 0
        """How many layers the present pass has been through."""
        self._count = len(upstream.attentions)

    @property
    def video(self) -> FollowedVideo:
        """The video that the present pass is of."""
        assert self.follower.video is not None
        return self.follower.video

    def see_size(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """Hook of the patch embedding: it knows the sizes on the host."""
        frames, rows, columns = output.shape[-3:]
        self.size = (frames, rows, columns)

    def check_whole(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Hook behind the transformer: with a KV cache, all its layers must have come here.

        Raises:
            BadRequest: If some did not.
        """
        layers, self.layers = self.layers, 0
        if layers != self._count and (layers or kwargs.get("kv_cache") is not None):
            raise _passed_by(f"Of {self._count} layers, {layers} came to the attached attention")

    def begin(self, start: int, batch: int, dtype: torch.dtype, device: torch.device, **says: Any) -> None:
        """Begin a pass.

        Args:
            start: Position of its first latent frame.
            batch: Samples.
            dtype: Of queries, keys and values.
            device: Where it runs.
            **says: What the pass says of itself; see `Pass`.

        Raises:
            BadRequest: If it goes on from nothing that is known.
        """
        frames, rows, columns = self.size
        self.follower.begin(Pass(start, frames, **says), Grid(batch, rows, columns, dtype, device))

    def start_of(self, tokens: int) -> int:
        """The latent frame in which a token lies, as the code around counts.

        Raises:
            BadRequest: If it counts frames of another size.
        """
        _, rows, columns = self.size
        per_frame = self.upstream.setting("frame_seq_length") or rows * columns
        if tokens % per_frame:
            raise BadRequest(
                f"A pass begins at token {tokens}, in the middle of a latent frame of {per_frame}",
                f"let the code count {per_frame} tokens per latent frame (frame_seq_length)",
            )
        return int(tokens) // int(per_frame)


class AttachedAttention:
    """The `forward` of one layer's self-attention while something is attached."""

    def __init__(self, passes: SeenPasses, layer: int, original: Callable[..., Any]) -> None:
        """Take the place of a `forward`.

        Args:
            passes: Of the transformer.
            layer: Number of the layer.
            original: What it takes the place of; calls without a KV cache, as in training, still go there.
        """
        self._passes, self._layer, self._original = passes, layer, original
        self._module: Any = passes.upstream.attentions[layer]
        self.__signature__ = self._signature = signature(original)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Attend from the current frames to what their heads see.

        Returns:
            `(B, L, dim)`, in the form in which the family returns it.

        Raises:
            BadRequest: If gradients are asked for, or the pass goes on from nothing that is known.
        """
        call = arguments(self._signature, args, kwargs)
        if call["kv_cache"] is None:
            return self._original(*args, **kwargs)
        require_no_gradients(self._module)
        # Under inference_mode the cache would be of a kind that nobody else may write to.
        with torch.inference_mode(False), torch.no_grad():
            out = self._attend(call)
        if self._passes.upstream.family.returns_update:  # places in its own cache: nobody looks there
            end = call["current_start"] + out.shape[1]
            return out, (end, end, None)
        return out

    def _attend(self, call: dict[str, Any]) -> Tensor:
        module, passes, x = self._module, self._passes, call["x"]
        q, k, v = self._project(x)
        if self._layer == 0:
            passes.layers = 0
            if prod(passes.size) != x.shape[1]:
                raise _passed_by(f"A pass has {x.shape[1]} tokens, and {prod(passes.size)} were embedded")
            passes.begin(self._start(call), len(x), q.dtype, q.device, **told(call))
        passes.layers += 1
        attended = passes.video.attend(self._layer, q, k, v, passes.follower.rope)
        out: Tensor = module.o(attended.flatten(2))
        return out

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised queries and keys, and values, each `(B, L, H, D)`."""
        module = self._module
        if getattr(module, "to_qkv", None) is not None:
            q, k, v = module.to_qkv(x).chunk(3, -1)
        else:
            q, k, v = module.q(x), module.k(x), module.v(x)
        q, k, v = (
            part.unflatten(-1, (module.num_heads, module.head_dim))
            for part in (module.norm_q(q), module.norm_k(k), v)
        )
        return q, k, v.to(q.dtype)

    def _start(self, call: dict[str, Any]) -> int:
        """The position of a pass's first latent frame."""
        if "transformer_options" in call:
            return int(call["transformer_options"]["ar_state"]["start_frame"])
        return self._passes.start_of(call["current_start"])


def _passed_by(problem: str) -> BadRequest:
    """Parts of the transformer were compiled as they were before."""
    return BadRequest(problem, "attach before torch.compile, or call torch._dynamo.reset() after attaching")
