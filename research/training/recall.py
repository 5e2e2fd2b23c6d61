"""Clips and passes for `train_recall.py`: prompts that change on the way, and chunks far from their past."""

import itertools
import time
from types import MethodType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dummyforcing.evaluation.world.scene import COLORS, FLOORS, SHAPES
from dummyforcing.models.wan import Block, CausalWan
from research.detectors.recall import AFTER, RecallStory, make_recall_story
from research.training.data import TEXT_LEN, random_scenes, render, tokenize
from research.training.networks import Networks, blocks_of, masked_attention, rope_of
from research.training.run import CHUNK, SIZE, TOKENS, Run, autocast
from research.training.vae import Encoder

PHASES = 3
"""Prompts of a clip."""


class LoRALinear(nn.Module):
    """A frozen linear layer with a trained low-rank change."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        out, width = linear.weight.shape
        self.lora_A = nn.Parameter(torch.randn(rank, width) / width**0.5)
        self.lora_B = nn.Parameter(torch.zeros(out, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the changed layer."""
        return F.linear(x, self.weight + self.lora_B @ self.lora_A, self.bias)


def add_lora(model: CausalWan, rank: int) -> list[nn.Parameter]:
    """Freeze a model and put a LoRA on every linear layer of its blocks, as LongLive has it."""
    model.requires_grad_(False)
    trained: list[nn.Parameter] = []
    for block in blocks_of(model):
        for parent in (block.self_attn, block.cross_attn, block.ffn):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    changed = LoRALinear(child, rank)
                    setattr(parent, name, changed)
                    trained += [changed.lora_A, changed.lora_B]
    return trained


def lora_tensors(model: CausalWan) -> dict[str, Tensor]:
    """The LoRA under PEFT's names, float16."""
    return {
        f"base_model.model.{name}.weight": value.detach().to("cpu", torch.float16).contiguous()
        for name, value in model.named_parameters()
        if name.rpartition(".")[2] in ("lora_A", "lora_B")
    }


def attend_phases(self: Block, q: Tensor, text: tuple[Tensor, ...]) -> Tensor:
    """`Block.attend_text` for several prompts, too: then a mask after keys and values says who sees which."""
    q, k, v = (t.transpose(1, 2) for t in (q, *text[:2]))
    mask = text[2] if len(text) > 2 else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def take_phases(model: CausalWan) -> None:
    """Let a model's blocks read prompts that change on the way."""
    for block in blocks_of(model):
        block.attend_text = MethodType(attend_phases, block)  # type: ignore[method-assign]


class Clips:
    """Encoded clips of so many chunks, their prompts, and the prompt of every chunk; on the device."""

    def __init__(
        self,
        run: Run,
        networks: Networks,
        encoder: Encoder,
        stage: str,
        chunks: int,
        count: int,
        batch: int,
    ) -> None:
        """Make three of four clips of objects that come back at the end, the others of the usual world.

        Args:
            run: Where.
            networks: Whose tokenizer reads the prompts.
            encoder: Makes latents.
            stage: Seeds the scenes.
            chunks: Length.
            count: How many.
            batch: Rendered and encoded together.
        """
        began, rng = time.monotonic(), run.rng(stage)
        kinds = list(itertools.product(COLORS, SHAPES))
        latents, tokens, phases = [], [], []
        for number in range(0, count, batch):
            if number % (4 * batch):
                stories = [self._story(kinds, chunks, rng) for _ in range(batch)]
                scenes = [story.scene for story in stories]
                prompts = [prompt for story in stories for _, prompt in story.prompts]
                phases += [
                    [sum(c >= start for start, _ in s.prompts) - 1 for c in range(chunks)] for s in stories
                ]
            else:
                scenes = random_scenes(batch, rng)
                prompts = [scene.prompt for scene in scenes for _ in range(PHASES)]
                phases += [[0] * chunks] * batch
            with torch.no_grad(), autocast(run):
                clips = render(scenes, 1 + 4 * (CHUNK * chunks - 1), SIZE, run.device)
                z = (encoder.whole.encode(clips)[0] - encoder.mean) / encoder.std
            latents.append(z.transpose(1, 2).bfloat16())
            tokens.append(tokenize(networks.tokenizer, prompts).view(batch, PHASES, TEXT_LEN))
        self.latents, self.tokens = torch.cat(latents), torch.cat(tokens).to(run.device)
        self.phases = torch.tensor(phases, device=run.device)
        run.log(f"{len(self.latents)} clips of {chunks} chunks in {time.monotonic() - began:.1f} s")

    @staticmethod
    def _story(kinds: list[tuple[str, str]], chunks: int, rng: np.random.Generator) -> RecallStory:
        """An object that comes back `AFTER` chunks before the end, after any absence there is room for."""
        returns = chunks - AFTER
        enters = bool(rng.random() < 0.5)
        first = 4 if enters else 2
        early = rng.random() < 0.5  # long absences are what is to be learned
        leaves = int(rng.integers(first, first + 3 if early else returns - 2))
        floor = str(rng.choice(list(FLOORS))) if rng.random() < 0.3 else None
        return make_recall_story(kinds[rng.integers(len(kinds))], rng, leaves, returns, enters, floor)

    def sample(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents `(B, F, C, h, w)` float32, token ids `(B, PHASES, TEXT_LEN)`, phases `(B, chunks)`."""
        picks = torch.randint(len(self.latents), (count,), device=self.latents.device)
        return self.latents[picks].float(), self.tokens[picks], self.phases[picks]


class SomeChunks:
    """Denoise some chunks of a clip in one pass, each given the clean frames before it.

    The sequence is [all clean frames | the noisy chunks], see `TeacherForcing`.
    """

    def __init__(
        self, chunks: int, noisy: tuple[int, ...], device: torch.device, frame_tokens: int = TOKENS
    ) -> None:
        self.chunks, self.noisy = chunks, torch.tensor(noisy, device=device)
        self.frames = tuple(CHUNK * c + i for c in (*range(chunks), *noisy) for i in range(CHUNK))
        self.frame_tokens = frame_tokens
        width = CHUNK * frame_tokens
        size, clean = (chunks + len(noisy)) * width, chunks * width
        order = torch.cat([torch.arange(chunks, device=device), self.noisy])

        def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            q_noisy, k_noisy = q >= clean, k >= clean
            q_chunk, k_chunk = order[q // width], order[k // width]
            own = (q_chunk == k_chunk) & (q_noisy == k_noisy)
            return own | (~k_noisy & (k_chunk < q_chunk))

        self.attention = masked_attention(visible, size, device)

    def frames_of(self, per_chunk: Tensor) -> Tensor:
        """Spread `(B, chunks, ...)` over the frames of the sequence, `(B, frames, ...)`."""
        both = torch.cat([per_chunk, per_chunk[:, self.noisy]], 1)
        return both.repeat_interleave(CHUNK, 1)

    def chosen(self, x: Tensor) -> Tensor:
        """The noisy chunks of a clip `(B, F, ...)`."""
        return torch.unflatten(x, 1, (self.chunks, CHUNK))[:, self.noisy].flatten(1, 2)

    def __call__(
        self, model: CausalWan, past: Tensor, x: Tensor, sigma: Tensor, text: Tensor, phases: Tensor
    ) -> Tensor:
        """Velocity of the noisy chunks.

        Args:
            model: Whose blocks take phases.
            past: Clean frames, `(B, F, C, h, w)`.
            x: Noisy frames, `(B, n, C, h, w)`.
            sigma: Their noise levels, `(B, n)`.
            text: Prompt embeddings, `(B, PHASES, TEXT_LEN, text_dim)`.
            phases: The prompt of each chunk, `(B, chunks)`.
        """
        clean = sigma.new_zeros(len(sigma), past.shape[1])
        time_of = model.embed_time(1000 * torch.cat([clean, sigma], 1))
        both = torch.cat([past, x], 1)
        height, width = both.shape[-2:]
        rope = rope_of(model.config.head_dim, self.frames, height, width, both.device)
        seen = self.frames_of(phases).repeat_interleave(self.frame_tokens, 1)  # (B, L)
        owner = torch.arange(PHASES, device=x.device).repeat_interleave(text.shape[2])
        mask = (seen[..., None] == owner)[:, None]
        pairs = [tuple(t.flatten(1, 2) for t in pair) for pair in model.embed_text(text)]
        tokens = model.patchify(both).float()
        phased = [(*pair, mask) for pair in pairs]  # for blocks that take phases
        tokens = model.transform(tokens, time_of, phased, rope, self.attention)  # type: ignore[arg-type]
        return model.unpatchify(tokens, time_of, height, width).float()[:, past.shape[1] :]
