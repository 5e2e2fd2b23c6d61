"""Small stand-ins for the transformers and pipelines of public repositories.

They have the documented signatures, attributes and caches of those, and dense attention of their own, written
plainly. Only what cannot be told from the documentation (Rolling Forcing's and Krea's attention) is missing.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from dummyforcing.kernels.rope import apply_rope, rope_table
from dummyforcing.models.wan import AttentionProjections, CausalWan, ModelConfig, gated, modulate
from dummyforcing.sampling.schedule import make_schedule, renoise, x0_from_velocity
from tests.oracles import softmax_attention

CAPACITY = 21
"""Latent frames in the buffers of pipelines without a window."""
CHANNELS, HEIGHT, WIDTH = 16, 4, 6
TOKENS = (HEIGHT // 2) * (WIDTH // 2)
STEPS = {"rolling-forcing": [1000, 800, 600, 400, 200], "krea": [1000, 750, 500, 250, 0]}


class SelfAttention(AttentionProjections):
    """Projections under the names that all repositories have."""

    def __init__(self, config: ModelConfig, local_attn_size: int = -1, sink_size: int = 0) -> None:
        super().__init__(config)
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.local_attn_size, self.sink_size = local_attn_size, sink_size

    def rotated(self, x: Tensor, grid_sizes: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, with RoPE at frame `start` and later; upstream's table ends at 1024."""
        frames, rows, columns = grid_sizes[0].tolist()
        if start + frames > 1024:
            raise RuntimeError("the table of angles has 1024 rows")
        rope = rope_table(torch.arange(start, start + frames), rows, columns, self.head_dim)
        q, (k, v) = self.query(x), self.key_value(x)
        return apply_rope(q, *rope), apply_rope(k, *rope), v


class SelfForcingAttention(SelfAttention):
    """Writes in every pass, in place; a window moves what it keeps."""

    def forward(
        self,
        x: Tensor,
        seq_lens: Tensor,
        grid_sizes: Tensor,
        freqs: Tensor,
        block_mask: Any,
        kv_cache: Any = None,
        current_start: int = 0,
        cache_start: int | None = None,
    ) -> Tensor:
        frame = int(grid_sizes[0, 1:].prod())
        q, k, v = self.rotated(x, grid_sizes, current_start // frame)
        new, end = x.shape[1], current_start + x.shape[1]
        seen, local = int(kv_cache["global_end_index"]), int(kv_cache["local_end_index"])
        capacity, sink = kv_cache["k"].shape[1], self.sink_size * frame
        local += end - seen
        if self.local_attn_size != -1 and local > capacity:
            gone = local - capacity
            for name in ("k", "v"):
                kept = kv_cache[name][:, sink + gone :].clone()
                kv_cache[name][:, sink : sink + kept.shape[1]] = kept
            local = capacity
        kv_cache["k"][:, local - new : local], kv_cache["v"][:, local - new : local] = k, v
        kv_cache["global_end_index"].fill_(end)
        kv_cache["local_end_index"].fill_(local)
        return self.output(softmax_attention(q, kv_cache["k"][:, :local], kv_cache["v"][:, :local]))


class LongLiveAttention(SelfAttention):
    """Writes nothing: tells what is to be written after all blocks."""

    def forward(
        self,
        x: Tensor,
        seq_lens: Tensor,
        grid_sizes: Tensor,
        freqs: Tensor,
        block_mask: Any,
        kv_cache: Any = None,
        current_start: int = 0,
        cache_start: int | None = None,
        sink_recache_after_switch: bool = False,
    ) -> Any:
        frame = int(grid_sizes[0, 1:].prod())
        q, k, v = self.rotated(x, grid_sizes, current_start // frame)
        cut, end = current_start, current_start + x.shape[1]
        # Of its buffers only what lies before the current frames counts: the first frames, and the newest.
        places = kv_cache["place"]
        past = [p for p in places if p < cut]
        room = self.local_attn_size * frame - x.shape[1]
        sink = [p for p in past if p < self.sink_size * frame]
        recent = [p for p in past if p >= self.sink_size * frame]
        kept = sink + (recent[-(room - len(sink)) :] if room > len(sink) else [])
        rows = torch.tensor([places.index(p) for p in kept], dtype=torch.long)
        keys, values = (torch.cat([kv_cache[n][:, rows], t], 1) for n, t in (("k", k), ("v", v)))
        update = (keys, values, [*kept, *range(cut, end)])
        return self.output(softmax_attention(q, keys, values)), (end, end, update)


class CausVidAttention(SelfAttention):
    """Indexed by the absolute token; nothing is ever reset."""

    def forward(
        self,
        x: Tensor,
        seq_lens: Tensor,
        grid_sizes: Tensor,
        freqs: Tensor,
        block_mask: Any,
        kv_cache: Any = None,
        current_start: int = 0,
        current_end: int = 0,
    ) -> Tensor:
        q, k, v = self.rotated(x, grid_sizes, current_start // int(grid_sizes[0, 1:].prod()))
        kv_cache["k"][:, current_start:current_end], kv_cache["v"][:, current_start:current_end] = k, v
        return self.output(
            softmax_attention(q, kv_cache["k"][:, :current_end], kv_cache["v"][:, :current_end])
        )


class RollingForcingAttention(SelfAttention):
    """Its signature."""

    def forward(
        self,
        x: Tensor,
        seq_lens: Tensor,
        grid_sizes: Tensor,
        freqs: Tensor,
        block_mask: Any,
        kv_cache: Any = None,
        current_start: int = 0,
        cache_start: int | None = None,
        updating_cache: bool = False,
    ) -> Tensor:
        raise AssertionError("only attached")


class KreaAttention(SelfAttention):
    """Its signature, and its one linear layer for queries, keys and values."""

    def fuse_projections(self) -> None:
        """Make q, k and v one."""
        self.to_qkv = nn.Linear(self.q.in_features, 3 * self.q.in_features)
        self.to_qkv.weight.data = torch.cat([self.q.weight, self.k.weight, self.v.weight])
        self.to_qkv.bias.data = torch.cat([self.q.bias, self.k.bias, self.v.bias])
        self.to_qkv.requires_grad_(False)
        del self.q, self.k, self.v

    def forward(
        self,
        x: Tensor,
        seq_lens: Tensor,
        grid_sizes: Tensor,
        freqs: Tensor,
        block_mask: Any,
        kv_cache: Any = None,
        current_start: int = 0,
        cache_start: int | None = None,
    ) -> Tensor:
        raise AssertionError("only attached")


class ComfyAttention(SelfAttention):
    """Gets its place from `transformer_options`."""

    def forward(
        self, x: Tensor, freqs: Tensor, kv_cache: Any = None, transformer_options: Any = None
    ) -> Tensor:
        raise AssertionError("only attached")


ATTENTIONS: dict[str, type[SelfAttention]] = {
    "self-forcing": SelfForcingAttention,
    "longlive": LongLiveAttention,
    "causvid": CausVidAttention,
    "rolling-forcing": RollingForcingAttention,
    "krea": KreaAttention,
    "comfyui": ComfyAttention,
}


class Block(nn.Module):
    """A block of Wan that hands on whatever the self-attention takes."""

    def __init__(self, config: ModelConfig, attention: SelfAttention) -> None:
        super().__init__()
        self.self_attn, self.cross_attn = attention, AttentionProjections(config)
        self.eps = config.eps
        self.norm3 = nn.LayerNorm(config.dim, eps=config.eps)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn_dim, config.dim),
        )
        self.modulation = nn.Parameter(torch.empty(1, 6, config.dim))

    def forward(
        self, x: Tensor, e: Tensor, context: Tensor, crossattn_cache: Any, *seen: Any, **told: Any
    ) -> Any:
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (self.modulation + e).unsqueeze(3).unbind(2)
        frames, info = e.shape[1], None
        y = self.self_attn(modulate(x, shift_a, scale_a, self.eps), *seen, **told)
        if isinstance(y, tuple):
            y, info = y
        x = x + gated(y, gate_a, frames)
        if not crossattn_cache["is_init"]:
            crossattn_cache["k"], crossattn_cache["v"] = self.cross_attn.key_value(context)
            crossattn_cache["is_init"] = True
        seen_text = softmax_attention(
            self.cross_attn.query(self.norm3(x)), crossattn_cache["k"], crossattn_cache["v"]
        )
        x = x + self.cross_attn.output(seen_text)
        return x + gated(self.ffn(modulate(x, shift_f, scale_f, self.eps)), gate_f, frames), info


class Transformer(CausalWan):
    """A transformer with the blocks and the `forward` of a family."""

    def __init__(self, config: ModelConfig, family: str, **window: int) -> None:
        super().__init__(config)
        self.family, self.text_len, self.freq_dim, self.eps = (
            family,
            config.text_len,
            config.freq_dim,
            config.eps,
        )
        self.local_attn_size = window.get("local_attn_size", -1)
        self.num_frame_per_block = 1
        self.block_mask: Any = None
        self.blocks = nn.ModuleList(
            Block(config, ATTENTIONS[family](config, **window)) for _ in range(config.num_layers)
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward_inference(*args, **kwargs)

    def _forward_inference(
        self,
        x: Any,
        t: Tensor,
        context: Any,
        seq_len: int,
        clip_fea: Any = None,
        y: Any = None,
        kv_cache: Any = None,
        crossattn_cache: Any = None,
        current_start: int = 0,
        cache_start: int = 0,
    ) -> Tensor:
        return self.run(x, t, context, seq_len, kv_cache, crossattn_cache, current_start)

    def run(
        self,
        x: Any,
        t: Tensor,
        context: Any,
        seq_len: int,
        kv_cache: Any,
        crossattn_cache: Any,
        current_start: int,
        **told: Any,
    ) -> Tensor:
        """What all of them do."""
        x = [self.patch_embedding(one[None]) for one in x]
        grid_sizes = torch.stack([torch.tensor(one.shape[2:]) for one in x])
        tokens = torch.cat([one.flatten(2).transpose(1, 2) for one in x])
        assert tokens.shape[1] <= seq_len
        time = self.embed_time(t)
        text = self.text_embedding(torch.stack(list(context)))
        infos, end = [], told.pop("current_end", None)
        for block, kv, cross in zip(self.blocks, kv_cache, crossattn_cache, strict=True):
            if self.family == "comfyui":
                seen: Any = (None, kv, {"ar_state": {"start_frame": current_start // TOKENS}})
            else:
                seen = (None, grid_sizes, None, self.block_mask, kv, current_start)
            if self.family == "causvid":
                seen = (*seen, end)
            tokens, info = block(tokens, time.blocks, text, cross, *seen, **told)
            infos.append(info)
        if self.family == "longlive":
            self._apply_cache_updates(kv_cache, list(enumerate(infos)))
        height, width = (int(n) * 2 for n in grid_sizes[0, 1:])
        return self.unpatchify(tokens, time, height, width).transpose(1, 2)

    def _apply_cache_updates(self, kv_cache: Any, infos: Any) -> None:
        for layer, (_, _, (k, v, place)) in infos:
            kv_cache[layer].update(k=k, v=v, place=place)


class LongLiveTransformer(Transformer):
    """Is told whether the first frames that are written again become the first ones of a new past."""

    def _forward_inference(
        self,
        x: Any,
        t: Tensor,
        context: Any,
        seq_len: int,
        clip_fea: Any = None,
        y: Any = None,
        kv_cache: Any = None,
        crossattn_cache: Any = None,
        current_start: int = 0,
        cache_start: int = 0,
        sink_recache_after_switch: bool = False,
    ) -> Tensor:
        told = {"sink_recache_after_switch": sink_recache_after_switch}
        return self.run(x, t, context, seq_len, kv_cache, crossattn_cache, current_start, **told)


class CausVidTransformer(Transformer):
    """Is told where the current frames end, and has no other starts."""

    def _forward_inference(
        self,
        x: Any,
        t: Tensor,
        context: Any,
        seq_len: int,
        clip_fea: Any = None,
        y: Any = None,
        kv_cache: Any = None,
        crossattn_cache: Any = None,
        current_start: int = 0,
        current_end: int = 0,
    ) -> Tensor:
        told = {"current_end": current_end}
        return self.run(x, t, context, seq_len, kv_cache, crossattn_cache, current_start, **told)


class RollingForcingTransformer(Transformer):
    """Is told whether a pass commits."""

    def _forward_inference(  # type: ignore[override]
        self,
        x: Any,
        t: Tensor,
        context: Any,
        seq_len: int,
        updating_cache: bool = False,
        clip_fea: Any = None,
        y: Any = None,
        kv_cache: Any = None,
        crossattn_cache: Any = None,
        current_start: int = 0,
        cache_start: int = 0,
    ) -> Tensor:
        told = {"updating_cache": updating_cache}
        return self.run(x, t, context, seq_len, kv_cache, crossattn_cache, current_start, **told)


class ComfyTransformer(Transformer):
    """ComfyUI's transformer is told of its caches in `transformer_options`."""

    _forward_inference = property()  # it has none

    def forward(  # type: ignore[override]
        self, x: Tensor, timestep: Tensor, context: Any, transformer_options: Any = None
    ) -> Tensor:
        state = transformer_options["ar_state"]
        return self.run(
            x,
            timestep,
            context,
            seq_len=10**6,
            kv_cache=state["kv_caches"],
            crossattn_cache=state["crossattn_caches"],
            current_start=state["start_frame"] * TOKENS,
        )


KINDS: dict[str, type[Transformer]] = {
    "longlive": LongLiveTransformer,
    "causvid": CausVidTransformer,
    "rolling-forcing": RollingForcingTransformer,
    "comfyui": ComfyTransformer,
}


def transformer(family: str, seed: int = 0, layers: int = 2, heads: int = 4, **window: int) -> Transformer:
    """A small transformer of a family with random weights that are large enough for every part to matter."""
    torch.manual_seed(seed)
    config = ModelConfig(
        dim=8 * heads, ffn_dim=32, num_heads=heads, num_layers=layers, text_len=5, text_dim=12, freq_dim=16
    )
    model = KINDS.get(family, Transformer)(config, family, **window).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            weight.copy_(torch.rand_like(weight) + 1)
        else:
            weight.copy_(torch.randn_like(weight) * (weight[0].numel() ** -0.5 if weight.dim() > 1 else 0.2))
    return model


class Wrapper(nn.Module):
    """What stands between a pipeline and its transformer."""

    def __init__(self, model: nn.Module, tokens: int) -> None:
        super().__init__()
        self.model, self.seq_len = model, CAPACITY * tokens

    def forward(self, noisy: Tensor, prompt: Tensor, timestep: Tensor, **told: Any) -> Tensor:
        x = noisy.transpose(1, 2)
        if self.model.family == "causvid":
            told["current_end"] = told["current_start"] + x.shape[2] * x.shape[3] * x.shape[4] // 4
        if self.model.family == "comfyui":
            caches = {"kv_caches": told["kv_cache"], "crossattn_caches": told["crossattn_cache"]}
            state = {"start_frame": told["current_start"] // TOKENS, **caches}
            velocity: Tensor = self.model(x, timestep, prompt, transformer_options={"ar_state": state})
        else:
            velocity = self.model(x, t=timestep, context=prompt, seq_len=self.seq_len, **told)
        return velocity.transpose(1, 2)


class Pipeline:
    """The sampling loop of a family, with its caches and its draws of noise."""

    def __init__(
        self,
        model: Any,
        chunk: int = 3,
        steps: list[Any] | None = None,
        global_sink: bool = True,
        sizes: tuple[int, int, int] | None = None,
        tokens: int = TOKENS,
    ) -> None:
        """Make one of a transformer; `sizes`: layers, heads and their width of one that is not ours."""
        self.family = model.family
        config = model.config
        self.sizes = sizes or (config.num_layers, config.num_heads, config.head_dim)
        steps = steps or STEPS.get(self.family, [1000, 500])
        self.generator = Wrapper(model, tokens)
        self.schedule = make_schedule(steps, shift=5.0)
        self.denoising_step_list = torch.tensor(self.schedule.timesteps)
        self.frame_seq_length = tokens
        self.num_frame_per_block = chunk
        self.local_attn_size = getattr(model, "local_attn_size", -1)
        self.args = SimpleNamespace(context_noise=0)
        self.global_sink = global_sink
        self.kv_cache1: Any = None
        self.crossattn_cache: Any = None
        self.context_mask: Callable[[], Any] = object
        """Makes the block mask of a pass that writes context."""
        model.num_frame_per_block = chunk

    @property
    def model(self) -> Any:
        """The transformer."""
        return self.generator.model

    def _initialize_kv_cache(self, batch_size: int, dtype: torch.dtype, device: Any) -> None:
        layers, heads, width = self.sizes
        frames = CAPACITY if self.local_attn_size == -1 else self.local_attn_size
        shape = (batch_size, frames * self.frame_seq_length, heads, width)
        self.kv_cache1 = []
        for _ in range(layers):
            cache: dict[str, Any] = {n: torch.zeros(shape, dtype=dtype, device=device) for n in ("k", "v")}
            if self.family in ("self-forcing", "longlive", "rolling-forcing"):
                for name in ("global_end_index", "local_end_index"):
                    cache[name] = torch.tensor([0], dtype=torch.long, device=device)
            if self.family == "longlive":
                cache["place"] = []
            if self.family == "krea":
                cache |= {"global_end_index": 0, "local_end_index": 0}
            self.kv_cache1.append(cache)

    def begin(self, noise: Tensor) -> None:
        """Make or reset the caches of a video."""
        if self.kv_cache1 is None or self.family == "longlive":
            self._initialize_kv_cache(batch_size=len(noise), dtype=noise.dtype, device=noise.device)
        for cache in self.kv_cache1:
            for name in ("global_end_index", "local_end_index"):
                if isinstance(cache.get(name), Tensor):
                    cache[name] = torch.tensor([0], dtype=torch.long, device=noise.device)
        self.forget_prompt()

    def forget_prompt(self) -> None:
        """Have keys and values of the prompt made again."""
        self.crossattn_cache = [{"k": None, "v": None, "is_init": False} for _ in self.model.blocks]

    def velocity(
        self, x: Tensor, prompt: Tensor, timesteps: float | Tensor, start: int, **told: Any
    ) -> Tensor:
        """One pass over frames from `start` on."""
        if not isinstance(timesteps, Tensor):
            timesteps = torch.full(x.shape[:2], timesteps)
        return self.generator(  # type: ignore[no-any-return]
            x,
            prompt,
            timesteps,
            kv_cache=self.kv_cache1,
            crossattn_cache=self.crossattn_cache,
            current_start=start * self.frame_seq_length,
            **told,
        )

    def denoise(self, noise: Tensor, prompt: Tensor, start: int) -> Tensor:
        """All steps of a chunk."""
        x = x0 = noise
        for step, (timestep, sigma) in enumerate(
            zip(self.schedule.timesteps, self.schedule.sigmas, strict=True)
        ):
            if step:
                x = renoise(x0, torch.randn(x.shape), sigma).to(x.dtype)
            x0 = x0_from_velocity(x, self.velocity(x, prompt, timestep, start), sigma)
        return x0

    def inference(
        self,
        noise: Tensor,
        prompts: list[Tensor],
        switches: tuple[int, ...] = (),
        initial_latent: Tensor | None = None,
    ) -> Tensor:
        """Make a video of `noise (B, F, C, h, w)`; `prompts[i + 1]` begins at frame `switches[i]`."""
        if self.family == "rolling-forcing":
            return self._rolling(noise, prompts[0])
        if self.family == "krea":
            return self._recompute(noise, prompts[0])
        self.begin(noise)
        prompt, chunk = prompts[0], self.num_frame_per_block
        made = [] if initial_latent is None else list(torch.split(initial_latent, chunk, 1))
        for number, x0 in enumerate(made):
            self.velocity(x0, prompt, 0.0, number * chunk)
        first = len(made) * chunk
        for start in range(0, noise.shape[1], chunk):
            if start in switches:
                prompt = prompts[1 + switches.index(start)]
                self._recache(torch.cat(made, 1), prompt)
            x0 = self.denoise(noise[:, start : start + chunk], prompt, first + start)
            self.velocity(x0, prompt, 0.0, first + start)
            made.append(x0)
        return torch.cat(made, 1)

    def _recache(self, made: Tensor, prompt: Tensor) -> None:
        """Write the newest frames again under another prompt, LongLive's way."""
        count = min(self.local_attn_size, made.shape[1])
        start = made.shape[1] - count
        self.forget_prompt()
        told = {"sink_recache_after_switch": not self.global_sink}
        self.velocity(made[:, start:], prompt, 0.0, start, **told)
        self.forget_prompt()

    def _rolling(self, noise: Tensor, prompt: Tensor) -> Tensor:
        """A window of chunks at a time, one noise level each."""
        self.begin(noise)
        chunk, count = self.num_frame_per_block, len(self.schedule.sigmas)
        chunks = noise.shape[1] // chunk
        window: list[Tensor] = []
        made: list[Tensor] = []
        for number in range(chunks + count - 1):
            first = max(0, number - count + 1)
            if number < chunks:
                window.append(noise[:, number * chunk : (number + 1) * chunk])
            steps = [number - first - place for place in range(len(window))]
            steps = [count - 1 - place for place in range(len(window))] if number >= count - 1 else steps
            levels = torch.tensor([self.schedule.timesteps[step] for step in steps]).repeat_interleave(chunk)
            x = torch.cat(window, 1)
            velocity = self.velocity(x, prompt, levels[None].expand(len(x), -1), first * chunk)
            x0s = [
                x0_from_velocity(one, v, self.schedule.sigmas[step])
                for one, v, step in zip(window, torch.split(velocity, chunk, 1), steps, strict=True)
            ]
            window = [
                renoise(x0, torch.randn(x0.shape), self.schedule.sigmas[step + 1])
                for x0, step in zip(x0s, steps, strict=True)
                if step + 1 < count
            ]
            self.velocity(x0s[0], prompt, 0.0, first * chunk, updating_cache=True)
            if number >= count - 1:
                made.append(x0s[0])
        return torch.cat(made, 1)

    def _recompute(self, noise: Tensor, prompt: Tensor) -> Tensor:
        """Write the context again before every chunk; its first frame is the video's (keep_first_frame).

        It is at position 0, by its block mask, and said to be where the chunk is.
        """
        self.begin(noise)
        chunk = self.num_frame_per_block
        made: list[Tensor] = []
        for start in range(0, noise.shape[1], chunk):
            if made:
                past = torch.cat(made, 1)
                self._initialize_kv_cache(len(noise), noise.dtype, noise.device)
                self.model.block_mask = self.context_mask()
                self.velocity(torch.cat([past[:, :1], past[:, 1 - chunk :]], 1), prompt, 0.0, chunk)
                self.model.block_mask = None
            made.append(self.denoise(noise[:, start : start + chunk], prompt, chunk if made else 0))
        return torch.cat(made, 1)


def noise_of(frames: int, batch: int = 1, seed: int = 1) -> Tensor:
    """Noise for a video."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, CHANNELS, HEIGHT, WIDTH, generator=generator)


def prompt_of(model: Transformer, seed: int = 1, batch: int = 1) -> Tensor:
    """Embeddings of a prompt."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, model.config.text_len, model.config.text_dim, generator=generator)
