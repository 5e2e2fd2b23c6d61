"""One video of a pipeline: its session, prompts and first frames as they were asked for, and its decoder."""

from collections import deque
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dummyforcing.models.text_encoder import TextEncoder
from dummyforcing.models.wan import CausalWan, fingerprint
from dummyforcing.pipeline.request import Request
from dummyforcing.presets.preset import Preset, ScheduleArgs
from dummyforcing.runtime.fused import FusedWan
from dummyforcing.runtime.streams import Decoding, Lane, Mark
from dummyforcing.sampling.samplers import SAMPLERS
from dummyforcing.sampling.schedule import COMMIT_TIMESTEP, Schedule, make_schedule, seeded_noise
from dummyforcing.sampling.session import Observer, Received, Session
from dummyforcing.sampling.teacache import Calibration, skip_table
from dummyforcing.vae.codec import VideoDecoder


class Rollout:
    """The state of one video, or of a batch of them, from noise to pixel frames.

    A model that makes videos of one length only makes a longer one of several rollouts: each further one
    begins with the last frames of the one before, the first of them encoded anew as an image, since a video
    begins with one.
    """

    def __init__(
        self,
        preset: Preset,
        model: CausalWan,
        text: TextEncoder,
        vae: VideoDecoder,
        request: Request,
        observer: Observer | None = None,
        fused: FusedWan | None = None,
        bands: int | None = None,
    ) -> None:
        """Encode the prompts and what the video begins with, and start its session; see `VideoDecoder`."""
        self._preset, self._text, self._batch = preset, text, len(request.prompts)
        self._switches, self._fade = deque(request.switches), request.fade
        self._given: deque[Tensor] = deque()
        if request.start is not None:
            latents = _encode(vae, request.start, self._batch)
            self._given.extend(torch.split(latents, preset.chunk_frames, dim=1))
        context = preset.overlap_frames or preset.context_frames
        self._pixels = _Pixels(vae, bands, preset.pixel_frames(context) if context else 0)
        self._frames, self._total = 0, request.frames
        self._prompt_embeds = text.encode(request.prompts)

        options: dict[str, Any] = {}
        if preset.sampler == "recompute":
            first = None if preset.keep_first_frame else self._pixels.first_latent
            options |= {"context_frames": preset.context_frames, "first_latent": first}
        height, width = (side // vae.stride for side in request.size)
        self._new_session = partial(
            SAMPLERS[preset.sampler],
            model,
            policy=request.policy,
            schedule=_schedule(preset.schedule, request.strength),
            latent_shape=(self._batch, model.config.in_dim, height, width),
            chunk_frames=preset.chunk_frames,
            seeds=seeded_noise(range(request.seed, request.seed + self._batch)),
            plan=request.plan,
            guard=request.guard,
            skips=find_skips(preset, model, request),
            first_schedule=_first_schedule(preset, request),
            frames=min(request.frames, self._longest),
            reach=preset.reach,
            recache_frames=preset.recache_frames,
            global_sink=preset.global_sink,
            source=None if request.source is None else _encode(vae, request.source, self._batch),
            fused=fused,
            observer=observer,
            **options,
        )
        self.session: Session = self._new_session(self._prompt_embeds)

    def next_latents(self) -> Tensor:
        """The next chunk, `(B, chunk_frames, C, h, w)`, given or made; its pixel frames can wait."""
        return self._advance(self._put)

    def next_frames(self) -> list[Decoding]:
        """The pixel frames of the next chunk in pieces: the first frame of a video comes by itself, at once.

        On a GPU they are decoded beside whatever it is asked for afterwards. The next rollout decodes the
        frames that it begins with again, so they are left out at the end of one.
        """
        decodings = []

        def received(latents: Tensor) -> None:
            self._put(latents)
            made = latents.shape[1]
            is_end = self.session.frames + made >= self._longest and self._frames + made < self._total
            left_out = self._preset.pixel_frames(self._preset.overlap_frames) if is_end else 0
            decodings.extend(self._pixels.begin(left_out))

        self._advance(received)
        return decodings

    def _advance(self, received: Received) -> Tensor:
        if self.session.frames >= self._longest:
            self._begin_again()
        if self._given:
            self._latents = self._given.popleft()
            received(self._latents)
            self.session.extend(self._latents)
        else:
            if self._switches and self._switches[0].frame <= self._frames:
                self._prompt_embeds = self._text.encode([self._switches.popleft().prompt] * self._batch)
                self.session.set_prompt(self._prompt_embeds, chunks=self._fade)
            self._latents = self.session.next_chunk(received)
        self._frames += self._preset.chunk_frames
        return self._latents

    def _put(self, latents: Tensor) -> None:
        self.ready = Mark(latents.device)
        self._pixels.put(latents, self.ready)

    @property
    def overlaps(self) -> bool:
        """Whether the next chunk can be asked for while this one is decoded, and nothing is waited for."""
        return self._pixels.overlaps and not self.session.scores_next

    @property
    def _longest(self) -> int:
        """Latent frames of a rollout."""
        preset = self._preset
        return preset.max_frames if preset.overlap_frames and preset.max_frames else self._total

    def _begin_again(self) -> None:
        """Start the next rollout from the end of this one."""
        last = self._latents[:, 1 - self._preset.overlap_frames :].to(self.session.cache.device)
        start = torch.cat([self._pixels.first_latent().to(last.device), last], 1)
        del self.session  # its cache is gone before there is another one
        self.session = self._new_session(self._prompt_embeds)
        self.session.extend(start)
        self._pixels.begin_again(start)


class _Pixels:
    """Decodes a video, and encodes a pixel frame of it where a sampler's context begins with one.

    Apart from `Rollout`, so that no session refers back to what holds it: its memory is freed at once.
    """

    def __init__(self, vae: VideoDecoder, bands: int | None, context: int) -> None:
        self._vae, self._bands, self._context = vae, bands, context
        self._stream = vae.stream(bands)
        self._lane = Lane(vae.device, beside=not vae.moves)
        self._before: list[Tensor] = []
        self._last: Tensor | None = None  # as many pixel frames as the context reaches back
        self._waiting: Tensor | None = None  # latents that nobody has asked the pixel frames of

    @property
    def overlaps(self) -> bool:
        """Whether decoding goes on while the caller asks for something else."""
        return self._lane.stream is not None

    def put(self, latents: Tensor, ready: Mark) -> None:
        """Here are the next latents, or will be at a mark; their pixel frames can wait."""
        self._lane.take(latents, ready)
        self._waiting = latents

    def begin(self, left_out: int) -> list[Decoding]:
        """Begin to decode what is waiting, and to bring it to the main memory but for the last frames."""
        assert self._waiting is not None
        alone = 1 if self._stream.frames == 0 else 0
        pieces = [piece for piece in self._waiting.tensor_split([alone], 1) if piece.shape[1]]
        decodings = []
        with self._lane.work():
            for number, latents in enumerate(pieces, start=1):
                began = Mark(self._vae.device)
                pixels = self._decode(latents)
                count = pixels.shape[1] - (left_out if number == len(pieces) else 0)
                decodings.append(Decoding.of(pixels[:, :count], began))
        self._waiting = None
        return decodings

    def begin_again(self, latents: Tensor) -> None:
        """A new video begins with these latents; their pixel frames come with those of the next ones."""
        self._stream = self._vae.stream(self._bands)
        self._lane.take(latents, Mark(latents.device))
        with self._lane.work():
            self._before = [self._stream.decode(latents)]

    def first_latent(self) -> Tensor:
        """The oldest pixel frame of the context as an image's latent, `(B, 1, C, h, w)`."""
        with self._lane.work():
            if self._waiting is not None:
                self._decode(self._waiting)
                self._waiting = None
            assert self._last is not None
            latent: Tensor = self._vae.encode(self._last[:, :1])
        return self._lane.give(latent)

    def _decode(self, latents: Tensor) -> Tensor:
        pixels = torch.cat([*self._before, self._stream.decode(latents)], 1)
        self._before = []
        if self._context:
            known = pixels if self._last is None else torch.cat([self._last, pixels], 1)
            self._last = known[:, -self._context :]
        return pixels


def find_skips(preset: Preset, model: CausalWan, request: Request) -> tuple[bool, ...] | None:
    """Which calls of a chunk TeaCache leaves out, denoising steps and commit pass; None: nothing is asked.

    Raises:
        UserError: If a table was measured with other weights.
    """
    if request.teacache is None:
        return None
    timesteps = [*_schedule(preset.schedule, request.strength).timesteps, COMMIT_TIMESTEP]
    steps = request.teacache
    if isinstance(steps, Calibration):
        steps.require_weights(fingerprint(model))
        steps = steps.steps
    if isinstance(steps, tuple):
        return tuple(step in steps for step in range(len(timesteps)))
    device = model.patch_embedding.weight.device
    with torch.inference_mode():
        embeddings = [model.embed_time(torch.tensor([[t]], device=device)) for t in timesteps]
        return skip_table(embeddings, timesteps, steps)


def _first_schedule(preset: Preset, request: Request) -> Schedule | None:
    """Steps of the first chunk by themselves, all of which run: the preset's, or for the sake of a table."""
    if preset.first_schedule is not None:
        return _schedule(preset.first_schedule)
    return _schedule(preset.schedule) if isinstance(request.teacache, Calibration) else None


def _encode(vae: VideoDecoder, pixels: NDArray[np.uint8], batch: int) -> Tensor:
    """Latents of `pixels (n, H, W, 3)` for every sample, `(B, F, C, h, w)`."""
    latents: Tensor = vae.encode(torch.from_numpy(pixels)[None])
    return latents.expand(batch, -1, -1, -1, -1)


def _schedule(args: ScheduleArgs, strength: float = 1.0) -> Schedule:
    """The steps of a chunk; with a lower strength they start from less noise."""
    steps = args.steps if strength == 1 else [int(step * strength) for step in args.steps]
    return make_schedule(steps, args.shift, args.warp)
