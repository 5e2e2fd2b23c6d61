"""A rollout that is put aside and taken up again, or goes on in several ways from one beginning.

    session.save("ball.session")                                               # between two chunks
    session = Session.restore("ball.session", model, policy, schedule, shape)  # in another process
    other = session.fork()                                                     # in memory

Both go on bit by bit as the session itself would have, on the same machine.
"""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dummyforcing.cache.head_group import BufferState
from dummyforcing.cache.kv_cache import KVCache
from dummyforcing.cache.ring import Slots
from dummyforcing.errors import UserError
from dummyforcing.files.writing import replacing
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import Policy
from dummyforcing.models.wan import CausalWan
from dummyforcing.runtime.cuda_graphs import Engine
from dummyforcing.sampling.schedule import NoiseSource, Schedule, SeededNoise

FORMAT, VERSION = "dummyforcing session", "2"


class Resumable:
    """What of a session changes from chunk to chunk, and what saves, restores and forks it."""

    STATE: ClassVar[tuple[str, ...]] = (
        "frames",
        "_origin",
        "_tail",
        "_beginning",
        "_residual",
        "_is_first",
        "_is_planned",
        "_classify_at",
        "_probe_at",
        "_reference",
        "probe",
    )
    """Attributes that change, each a tensor, numbers or None; those below have kinds of their own."""
    RULES: ClassVar[Mapping[str, str]] = {
        "latent_shape": "latent shape",
        "policy": "policy",
        "guard": "guard",
        "schedule": "schedule",
        "first_schedule": "first schedule",
        "chunk_frames": "number of frames per chunk",
        "total_frames": "number of frames",
        "_recache_frames": "number of frames to rewrite",
        "_global_sink": "global sink",
        "_skips": "list of skipped calls",
    }
    """Attributes that must be the same to go on, in words."""

    schedule: Schedule
    cache: KVCache
    plans: list[Plan]
    prompt_embeds: Tensor
    _beginning: Tensor
    _prompts: list[Tensor]
    _noise: NoiseSource
    _skips: tuple[bool, ...]
    _engine: Engine | None
    _fingerprint: str
    _device: torch.device

    @torch.inference_mode()
    def fork(self, skips: Sequence[bool] | None = None) -> Self:
        """Make another session that goes on from here; neither affects the other.

        It has a cache of its own and shares the rest of the memory. A source of noise is copied by
        `copy.deepcopy`, which a function is not: forks share it.

        Args:
            skips: What the fork leaves out of its chunks, as at the start; None: the same as this session.

        Returns:
            The other session, with the same prompt and those that it was to fade into.

        Raises:
            ValueError: If `skips` has the wrong length, or the sampler has no calls to skip.
        """
        other = copy(self)
        other.cache = self.cache.copy()
        other._engine = self._engine and self._engine.over(other.cache)
        other.plans, other._prompts = list(self.plans), list(self._prompts)
        other._noise = deepcopy(self._noise)
        if skips is not None:
            other._skips = self._every_call(skips)
        return other

    def save(self, path: str | Path) -> None:
        """Write the state between two chunks to a file, which appears whole or not at all.

        It is about as large as the KV cache. The model, a `source` video and decoders are not in it.

        Args:
            path: The file, safetensors; its folder must exist.

        Raises:
            UserError: If it cannot be written, or the noise comes from a source whose state is not known.
        """
        if not isinstance(self._noise, SeededNoise):
            raise UserError("A session with a noise source of its own cannot be saved; give it seeds.")
        tensors = {"noise": self._noise.state(), "prompt": self.prompt_embeds}
        tensors |= {f"prompts.{number}": prompt for number, prompt in enumerate(self._prompts)}
        values: dict[str, object] = {}
        for name in self.STATE:
            value = getattr(self, name)
            (tensors if isinstance(value, Tensor) else values)[name] = value
        layers: list[list[dict[str, Any]]] = []
        for number, states in enumerate(self.cache.state()):
            layers.append([])
            for place, state in enumerate(states):
                fields = dict(vars(state)) | {"slots": [asdict(slots) for slots in state.slots]}
                tensors |= {f"cache.{number}.{place}.{name}": fields.pop(name) for name in KEPT}
                layers[-1].append(fields)
        header = {
            "fingerprint": self._fingerprint,
            "rules": self._rules(),
            "values": values,
            "prompts": len(self._prompts),
            "plans": [plan.to_fields() for plan in self.plans],
            "cache": {"frames": self.cache.frames, "layers": layers},
        }
        _write(Path(path), header, tensors)

    @classmethod
    @torch.inference_mode()
    def restore(
        cls,
        path: str | Path,
        model: CausalWan,
        policy: Policy,
        schedule: Schedule,
        latent_shape: tuple[int, int, int, int],
        **options: Any,
    ) -> Self:
        """Take up a session that `save` wrote.

        Args:
            path: The file.
            model: The one that the session began with; another device will do, but for rounding.
            policy: As at the start.
            schedule: As at the start.
            latent_shape: As at the start.
            **options: As at the start, see the class; of `seeds` and `plan` the file knows better.

        Returns:
            The session; its prompt, noise and plans are those of the file.

        Raises:
            UserError: If the file is damaged or of another version, or was made with another model or other
                options.
        """
        header, tensors = _read(Path(path))
        begin: Callable[..., Self] = cls
        text = torch.zeros(latent_shape[0], model.config.text_len, model.config.text_dim)
        session = begin(model, text, policy, schedule, latent_shape, **options)
        session._require(path, header)
        for name in cls.STATE:
            is_tensor = name in tensors
            setattr(session, name, tensors[name].to(session._device) if is_tensor else header["values"][name])
        session.plans = [Plan.from_fields(fields) for fields in header["plans"]]
        session._noise = SeededNoise.from_state(tensors["noise"])
        session._use_prompt(tensors["prompt"])
        session._prompts = [tensors[f"prompts.{n}"].to(session._device) for n in range(header["prompts"])]
        layers = [
            [_buffer(fields, tensors, f"cache.{number}.{place}") for place, fields in enumerate(buffers)]
            for number, buffers in enumerate(header["cache"]["layers"])
        ]
        session.cache.load_state(header["cache"]["frames"], layers)
        return session

    def _use_prompt(self, prompt_embeds: Tensor) -> None:
        raise NotImplementedError

    def _every_call(self, skips: Sequence[bool]) -> tuple[bool, ...]:
        """What is left out of a chunk, call by call; empty: nothing."""
        calls = len(self.schedule.timesteps) + 1
        if len(skips) not in (0, calls):
            raise ValueError(f"skips must cover {calls} calls: the denoising steps and the commit pass")
        return tuple(skips) or (False,) * calls

    def _rules(self) -> dict[str, str]:
        """What must be the same to go on."""
        rules = {words: repr(getattr(self, name)) for name, words in self.RULES.items()}
        return {
            "sampler": type(self).__name__,
            "dtype of the cache": str(self.cache.dtype),
            "reach": repr(self.cache.reach),
            **rules,
        }

    def _require(self, path: str | Path, header: Mapping[str, Any]) -> None:
        """Refuse to go on with what somebody else began."""
        if header["fingerprint"] != self._fingerprint:
            raise UserError(
                f"{path} was saved with model {header['fingerprint']}, but this model is "
                f"{self._fingerprint}: restore it with the model that it began with."
            )
        for name, mine in self._rules().items():
            if (theirs := header["rules"].get(name)) != mine:
                raise UserError(
                    f"{path} was saved with another {name}, {theirs} in place of {mine}: "
                    "restore it with what it began with."
                )


KEPT = ("k", "v", "pinned_k")
"""The tensors of a `BufferState`."""


def _buffer(fields: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> BufferState:
    slots = [Slots(**s | {"context": HeadContext(**s["context"])}) for s in fields["slots"]]
    return BufferState(**{**fields, "slots": slots, **{key: tensors[f"{name}.{key}"] for key in KEPT}})


def _write(path: Path, header: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
    text = json.dumps(header)
    own = {  # safetensors refuses tensors that share memory
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    about = {"format": FORMAT, "version": VERSION, "state": text, "checksum": _checksum(text, own)}
    with replacing(path) as part:
        save_file(own, part, about)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a file that `_write` wrote.

    Raises:
        UserError: If it is not there, of another version, or not as it was written.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}; give one that a session was saved to.")
    damage = f"{path} is damaged or holds no session; give a file that a session was saved to"
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            # Copies are aligned as any other tensors; matrix products round by alignment.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{damage} ({error}).") from error
    if about.get("format") != FORMAT:
        raise UserError(f"{damage}.")
    if about["version"] != VERSION:
        raise UserError(
            f"{path} is of version {about['version']} of the format, and this library reads version "
            f"{VERSION}: restore it with the library that saved it."
        )
    if about.get("checksum") != _checksum(about.get("state", ""), tensors):
        raise UserError(f"{damage} (its checksum differs).")
    header: dict[str, Any] = json.loads(about["state"])
    return header, tensors


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    total = zlib.crc32(text.encode())
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"
