"""One video in the making, from its prompt to pixel frames: what `pipeline.start` returns.

run = pipeline.start("a red ball bounces", num_frames=None)   # iterates over its chunks
chunk = run.next_chunk()
run.set_prompt("a blue star spins")
other = run.fork()
run.save("ball.rollout")                                      # pipeline.resume("ball.rollout")
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dummyforcing.errors import BadRequest
from dummyforcing.pipeline.assembly import encode_pixels, sampler_maker
from dummyforcing.pipeline.decoding import FrameDecoder
from dummyforcing.pipeline.delivery import Asked, Delivery
from dummyforcing.pipeline.finite import FiniteCheck
from dummyforcing.pipeline.option import one_option, shorten
from dummyforcing.pipeline.options import VideoOptions
from dummyforcing.pipeline.outputs import Chunk, Timings, join
from dummyforcing.pipeline.parts import Parts
from dummyforcing.pipeline.remarks import remarks_on_change, remarks_on_prompts, warn
from dummyforcing.pipeline.request import Request, check_prompts
from dummyforcing.pipeline.saved import RolloutState, rules_of, write_rollout
from dummyforcing.runtime.streams import Decoding, Event
from dummyforcing.sampling.noise import NoiseSource, SeededNoise, seeded_noise
from dummyforcing.sampling.passes import Observer
from dummyforcing.sampling.recompute import RecomputeSampler
from dummyforcing.sampling.sampler import Received, Sampler


class Rollout:
    """A video in the making, or a batch of them; iterates over its chunks.

    Pixel frames come as soon as they are there: the first frame of a video by itself, before the rest of its
    chunk. On a GPU the next chunk is asked for before the frames of this one are waited for, so what a caller
    changes between two chunks shows one chunk later.

    A model that makes videos of one length only makes a longer one of several parts: each further one begins
    with the last frames of the one before, the first of them encoded again as an image, since a video begins
    with one.
    """

    def __init__(
        self,
        parts: Parts,
        request: Request,
        tiles: int | None = None,
        observer: Observer | None = None,
    ) -> None:
        """Encode the prompts and what the video begins with, and start.

        Args:
            parts: The model.
            request: What is asked for.
            tiles: In how many tiles of rows to decode; None: as few as fit.
            observer: Is shown every self-attention.

        Raises:
            BadRequest: If the request does not suit the model, or heads are to be looked at on several GPUs.
            RankFailed: If a process of another GPU ends.
        """
        if observer is not None and parts.ranks is not None:
            raise BadRequest("Heads are looked at on one GPU only", "take gpus=1", "gpus")
        self._parts, self.request = parts, request
        self._number = parts.team.new_number(self) if parts.team else 0
        with self._together("start", parts.key, request, tiles):
            self._start(tiles, observer)

    def _start(self, tiles: int | None, observer: Observer | None) -> None:
        start, parts, request = time.perf_counter(), self._parts, self.request
        preset, batch = parts.preset, len(request.prompts)
        self.prompts = request.prompts
        """What the video shows at present, one for each of the batch."""
        self._height = request.size[0] // parts.vae.stride
        self._switches = deque(request.switches)
        self._given: deque[Tensor] = deque()
        if request.start is not None:
            latents = encode_pixels(parts.vae, request.start, batch)
            self._given.extend(torch.split(latents, preset.chunk_frames, dim=1))
        self._source = None
        if request.source is not None:
            self._source = encode_pixels(parts.vae, request.source, batch)
        context = preset.overlap_frames or preset.context_frames
        context_pixels = preset.pixel_frames(context) if context else 0
        self._decoder = FrameDecoder(parts.vae, tiles, context_pixels)
        self._latents: Tensor | None = None
        self.frames = 0
        """Latent frames that were made, of all parts of the video."""
        given = request.prompt_embeds
        self._prompt_embeds = self._encode(self.prompts) if given is None else given
        self._observer = observer
        noise = seeded_noise(range(request.seed, request.seed + batch))
        if request.generators is not None:
            noise = SeededNoise(request.generators)
        self.sampler: Sampler = self._new_sampler(noise)
        """Makes the latents."""
        fp8 = parts.fused.fp8 if parts.fused else "none"
        self._check = FiniteCheck(preset.chunk_frames, parts.model.patch_embedding.weight.dtype, fp8)
        self._delivery = Delivery(preset, batch, parts.device, start, self._check)
        self._was_scored = False  # in the newest chunk

    def __repr__(self) -> str:
        made, asked = self.frames, self.request.frames
        length = f"{made} latent frames" if asked is None else f"{made} of {asked} latent frames"
        return f"Rollout({shorten(self.prompts)}, {length})"

    def __iter__(self) -> Iterator[Chunk]:
        """Hand out pixel frames as they are finished, until the video has its length."""
        while (piece := self._next_piece()) is not None:
            yield piece

    def next_chunk(self) -> Chunk:
        """Make the next chunk, and wait for all of its pixel frames.

        Raises:
            BadRequest: If the video has its length.
            NotFinite: If the chunk has NaN or infinite numbers.
        """
        pieces: list[Chunk] = []
        while not pieces or not self._delivery.is_whole:
            piece = self._next_piece()
            if piece is None:
                raise _at_its_length()
            pieces.append(piece)
        return join(pieces)

    def next_latents(self) -> Tensor:
        """Make the next chunk without decoding it: its latents, `(B, chunk_frames, C, h, w)` float32.

        A GPU is not waited for: whether the newest latents are finite, `require_finite` tells.

        Raises:
            BadRequest: If the video has its length.
            NotFinite: If a chunk, this one or one before it, is known to have NaN or infinite numbers.
        """
        if self.is_done:
            raise _at_its_length()
        with self._together("next_latents"):
            chunk = self._chunk
            latents = self._advance(self._put)
            self._check.ask(chunk, latents)
        return latents

    def require_finite(self) -> None:
        """Wait for all latents that `next_latents` gave, and refuse what cannot be shown.

        Raises:
            NotFinite: If a chunk has NaN or infinite numbers.
        """
        self._check.wait()

    def set_prompt(self, prompt: str | Sequence[str], *, fade: int = 1) -> None:
        """Change what the video shows, from the next chunk on.

        Args:
            prompt: One for all videos of the batch, or one for each.
            fade: Chunks over which the old prompt fades into the new one.

        Raises:
            BadRequest: If a prompt is empty or no text, there is not one for each video, or the fade takes no
                chunk.
        """
        batch = len(self.prompts)
        prompts = check_prompts(prompt)
        if isinstance(prompt, str):
            prompts *= batch
        if len(prompts) != batch:
            raise BadRequest(
                f"{len(prompts)} prompts cannot be shown by {batch} videos",
                "give one for all of them, or one for each",
                "prompt",
            )
        fade = one_option(VideoOptions, "fade").checked(fade)
        self._change_prompts(prompts, fade)
        change = remarks_on_change(self._parts, self.request)
        warn([*remarks_on_prompts(self._parts, prompts), *change])

    def _change_prompts(self, prompts: tuple[str, ...], fade: int) -> None:
        with self._together("_change_prompts", prompts, fade):
            self._prompt_embeds, self.prompts = self._encode(prompts), prompts
            self.sampler.set_prompt(self._prompt_embeds, chunks=fade)

    @property
    def timings(self) -> Timings:
        """Times up to the newest chunk that was handed out."""
        return self._delivery.timings

    @property
    def is_done(self) -> bool:
        """Whether all chunks of the video were made."""
        return self.request.frames is not None and self.frames >= self.request.frames

    def fork(self) -> "Rollout":
        """Make another rollout that goes on from here; neither affects the other.

        It has a cache of its own and shares the rest of the memory.
        """
        other = copy(self)
        if self._parts.team:
            other._number = self._parts.team.new_number(other)
        with self._together("fork", other._number):
            self._fork_into(other)
        return other

    def _fork_into(self, other: "Rollout") -> None:
        other._switches, other._given = copy(self._switches), copy(self._given)
        other._decoder = self._decoder.copy(self._height)
        other.sampler = self._fork_sampler(other._decoder)
        other._check = self._check.copy()
        other._delivery = self._delivery.copy()

    def save(self, path: str | Path) -> None:
        """Write all that is needed to go on to a file, which appears whole or not at all.

        It is about as large as the KV cache. The model is not in it.

        Args:
            path: The file; its folder must exist. See `DummyForcingPipeline.resume`.

        Raises:
            UserError: If it cannot be written, the noise comes from a source whose state is not known, or a
                chunk has NaN or infinite numbers.
        """
        self.require_finite()
        write_rollout(Path(path), self._state())

    def _state(self) -> RolloutState:
        """The state between two chunks; it shares memory with this rollout."""
        with self._together("_state"):
            return RolloutState(
                fingerprint=self.sampler.fingerprint,
                rules=rules_of(self._parts),
                request=replace(self.request, start=None, source=None, generators=None, prompt_embeds=None),
                prompts=self.prompts,
                prompt_embeds=self._prompt_embeds,
                switches=len(self._switches),
                given=tuple(self._given),
                source=self._source,
                frames=self.frames,
                latents=self._latents,
                sampler=self.sampler.state(),
                decoder=self._decoder.state(),
                delivery=self._delivery.state(),
            )

    @classmethod
    def from_state(cls, state: RolloutState, parts: Parts, tiles: int | None = None) -> "Rollout":
        """Take up a rollout from its state.

        Args:
            state: From `read_rollout`, of this model.
            parts: The model; another device than that of the state will do, but for rounding.
            tiles: In how many tiles of rows to decode, if that is not decided yet.
        """
        request = replace(state.request, prompt_embeds=state.prompt_embeds)
        rollout = cls(parts, request, state.decoder.stream.tiles or tiles)
        rollout._load(state)
        return rollout

    def _load(self, state: RolloutState) -> None:
        with self._together("_load", state):
            device, switches = self._parts.device, self.request.switches
            self.prompts = state.prompts
            self._switches = deque(list(switches)[len(switches) - state.switches :])
            self._given = deque(latents.to(device) for latents in state.given)
            self._source = None if state.source is None else state.source.to(device)
            if self._source is not None:
                self.sampler = self._new_sampler(self.sampler.noise)
            self.frames = state.frames
            self._latents = None if state.latents is None else state.latents.to(device)
            self.sampler.load_state(state.sampler)
            self._decoder.load_state(state.decoder, self._height)
            self._delivery.load_state(state.delivery)

    # --- several GPUs ------------------------------------------------------------------------------------

    def _together(self, what: str, *args: object) -> AbstractContextManager[object]:
        """Have the processes of other GPUs do with their rollout what is done with this one inside."""
        team = self._parts.team
        return team.together(self._number, what, *args) if team else nullcontext()

    def _encode(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings of prompts; of several GPUs, the first one makes them."""
        parts = self._parts
        if parts.ranks is None:
            return parts.text.encode(prompts)
        return parts.ranks.share(lambda: parts.text.encode(prompts).cpu())

    # --- making chunks ---------------------------------------------------------------------------------

    def _new_sampler(self, noise: NoiseSource) -> Sampler:
        """Start a part of the video."""
        parts = self._parts
        maker = sampler_maker(
            parts.preset,
            parts.model,
            self.request,
            parts.vae.stride,
            source=self._source,
            first_latent=self._decoder.first_latent,
            fused=parts.fused,
            observer=self._observer,
            ranks=parts.ranks,
        )
        return maker(prompt_embeds=self._prompt_embeds, seeds=noise)

    def _fork_sampler(self, decoder: FrameDecoder) -> Sampler:
        if isinstance(self.sampler, RecomputeSampler) and self.sampler.first_latent is not None:
            return self.sampler.fork(decoder.first_latent)
        return self.sampler.fork()

    def _advance(self, received: Received) -> Tensor:
        """Take a given chunk, or make one."""
        if self._longest is not None and self.sampler.frames >= self._longest:
            self._begin_again()
        if self._given:
            latents = self._given.popleft()
            received(latents)
            self.sampler.extend(latents)
        else:
            if self._switches and self._switches[0].frame <= self.frames:
                self.prompts = (self._switches.popleft().prompt,) * len(self.prompts)
                self._prompt_embeds = self._encode(self.prompts)
                self.sampler.set_prompt(self._prompt_embeds, chunks=self.request.fade)
            latents = self.sampler.next_chunk(received)
        self._latents = latents
        self.frames += self._parts.preset.chunk_frames
        return latents

    def _put(self, latents: Tensor) -> None:
        self._ready = Event(latents.device)
        self._decoder.put(latents, self._ready)

    @property
    def _chunk(self) -> int:
        """The chunk that is made next, from 0."""
        return self.frames // self._parts.preset.chunk_frames

    @property
    def _longest(self) -> int | None:
        """Latent frames of a part of the video; None: it has one part, as long as the video."""
        preset = self._parts.preset
        return preset.max_frames if preset.overlap_frames else None

    def _begin_again(self) -> None:
        """Start the next part from the end of this one."""
        assert self._latents is not None
        last = self._latents[:, 1 - self._parts.preset.overlap_frames :].to(self._parts.device)
        start = torch.cat([self._decoder.first_latent().to(last.device), last], 1)
        noise, prompts, heads = self.sampler.noise, self.sampler.prompts, self.sampler.heads
        chunks = (self.sampler.frames - start.shape[1]) // self.sampler.chunk_frames
        del self.sampler  # its cache is gone before there is another one
        self.sampler = self._new_sampler(noise)
        self.sampler.take_over(prompts, heads, chunks, start)
        self._decoder.begin_again(start)

    # --- handing out pixel frames ------------------------------------------------------------------------

    @property
    def _overlaps(self) -> bool:
        """Whether the next chunk is asked for before the newest one is handed out.

        Not where heads are scored: a GPU is waited for there. The chunk is ready then, and the one after it,
        whose graphs are recorded, takes longer to ask for than others.
        """
        return self._decoder.overlaps and not self.sampler.scores_next and not self._was_scored

    def _next_piece(self) -> Chunk | None:
        """The next pixel frames; None: the video has its length."""
        while len(self._delivery) <= (1 if self._overlaps and not self.is_done else 0):
            if self.is_done:
                return None
            self._ask()
        return self._delivery.take()

    def _ask(self) -> None:
        """Ask the device for the next chunk and its pixel frames.

        The next part of a video decodes the frames that it begins with again, so they are left out at the end
        of the one before.
        """
        with self._together("_ask"):
            self._ask_here()

    def _ask_here(self) -> None:
        decodings: list[Decoding] = []
        parts = self._parts

        def received(latents: Tensor) -> None:
            self._put(latents)
            made, preset = latents.shape[1], self._parts.preset
            is_end = self._longest is not None and self.sampler.frames + made >= self._longest
            goes_on = self.request.frames is None or self.frames + made < self.request.frames
            left_out = preset.pixel_frames(preset.overlap_frames) if is_end and goes_on else 0
            decodings.extend(self._decoder.begin(left_out))

        began, chunk = Event(self._parts.device), self._chunk
        self._was_scored = self.sampler.scores_next
        self._advance(received)
        ended, sampler = Event(self._parts.device), self.sampler
        asked = Asked(began, self._ready, ended, sampler.plans, sampler.cache.nbytes, chunk)
        if parts.ranks is None or parts.ranks.rank == 0:  # which hands them out
            self._delivery.put(asked, decodings)


def _at_its_length() -> BadRequest:
    return BadRequest("The video has its length", "start one with num_frames=None", "num_frames")
