"""The strength of a LoRA, from wherever public tools write it; what is not understood is refused by name.

    strengths = Strengths.of(path, notes)
    strengths.find("blocks.0.ffn.0", rank=4, alpha=8.0, is_kohya=False)   # Strength(2.0, "alpha 8")

A layer's weight changes by strength * up @ down. Its strength is alpha / rank, or alpha / sqrt(rank) where a
LoRA is rank-stabilised. Public tools write alpha in five places:

- a tensor `.alpha` beside the layer's matrices: kohya's trainers, LightX2V, ComfyUI;
- `adapter_config.json` in the folder of the file: PEFT. It may have another alpha and rank for some layers;
- the same fields as JSON in the metadata of a safetensors file, under `lora_adapter_metadata`: diffusers;
- `lora_alpha`, `network_alpha` or `alpha` in that metadata: LightX2V and others;
- `ss_network_alpha` there: kohya's trainers, beside the tensors. It counts where these are missing, unless
  the file was converted to names with lora_A and lora_B: the converters multiply the matrices by the
  strength, and keep the metadata as they were.

Where nothing is said, alpha is the rank. Places that contradict each other are refused.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dummyforcing.errors import BadFile
from dummyforcing.files.reading import parse_json, read_text

CONFIG = "adapter_config.json"
EMBEDDED = "lora_adapter_metadata"
ALPHAS = ("lora_alpha", "network_alpha", "alpha")
RANKS = ("lora_rank", "network_dim", "rank", "r")
KOHYA_ALPHA, KOHYA_RANK = "ss_network_alpha", "ss_network_dim"

STABILISED = "use_rslora"

UNKNOWN = re.compile(r"^(?!ss_|modelspec\.)(.*[_.])?(alpha|scale|scaling|strength|multiplier|dora|rslora)$")
"""Metadata that tell something about strength by their name."""

KEEPS_BASE = ("gaussian", "eva", "orthogonal", "mica")
"""Ways to begin the training of a LoRA that leave the model's own weights as they are. There are others, such
as PiSSA: what they make belongs to other weights."""

SWITCHES = re.compile(
    r"^(use_(?!rslora$)\w+|(?!loftq|eva|corda|lora_ga|megatron|runtime)\w+_config"
    r"|layer_replication|fan_in_fan_out|alora_invocation_tokens|lora_bias|target_parameters)$"
)
"""Fields of PEFT's configuration that change what a LoRA does, unless they are empty."""

AGREE = 0.01
"""Places agree if they differ by no more than this share: some tools write alpha in bfloat16."""


@dataclass(frozen=True)
class Strength:
    """How strongly the change of a layer counts."""

    factor: float
    told: str
    """Where that is said, in words."""


@dataclass(frozen=True)
class AdapterConfig:
    """What PEFT writes about the strength of a LoRA."""

    where: str
    """The file that it is from."""
    name: str
    """What that is, for somebody who knows the LoRA's file."""
    alpha: float
    rank: float | None
    alphas: Mapping[str, float]
    """Of the layers that these patterns are of."""
    ranks: Mapping[str, float]
    is_rank_stabilised: bool

    @classmethod
    def read(cls, fields: Mapping[str, Any], where: str, name: str) -> "AdapterConfig":
        """Take what counts of a configuration.

        Args:
            fields: Of PEFT's `LoraConfig`.
            where: The file that it is from.
            name: What that is, for somebody who knows the LoRA's file.

        Raises:
            BadFile: If it is of another method, or does something that a merge cannot do; names the field.
        """

        def refuse(name: str) -> BadFile:
            return BadFile(
                f"{where} has {name} {fields[name]!r}, which is not understood", "take another LoRA"
            )

        if str(fields.get("peft_type")).rpartition(".")[2] not in ("LORA", "None"):
            raise refuse("peft_type")
        for field, value in fields.items():
            if value and SWITCHES.match(field):
                raise refuse(field)
        if "lora_alpha" not in fields:
            raise BadFile(f"{where} does not describe a LoRA: it has no lora_alpha", "download it again")
        if isinstance(start := fields.get("init_lora_weights"), str) and start not in KEEPS_BASE:
            raise refuse("init_lora_weights")
        if not isinstance(is_stabilised := fields.get("use_rslora") or False, bool):
            raise refuse("use_rslora")
        rank = fields.get("r")
        return cls(
            where,
            name,
            _number(fields["lora_alpha"], f"{where}: lora_alpha"),
            None if rank is None else _number(rank, f"{where}: r"),
            _numbers(fields.get("alpha_pattern"), f"{where}: alpha_pattern"),
            _numbers(fields.get("rank_pattern"), f"{where}: rank_pattern"),
            is_stabilised,
        )

    def find(self, layer: str, rank: int) -> Strength:
        """The strength of a layer.

        Args:
            layer: Its name in the file, without what PEFT puts before it.
            rank: Of its matrices.

        Raises:
            BadFile: If the configuration has another rank.
        """
        is_own = (pattern := _matching(self.alphas, layer)) is not None
        alpha = self.alphas[pattern] if pattern is not None else self.alpha
        other = _matching(self.ranks, layer)
        said = self.rank if other is None else self.ranks[other]
        if said is not None and said != rank:
            raise BadFile(
                f"{self.where} says that {layer} has rank {said:g}, but its matrices have rank {rank}",
                "take the configuration that belongs to the file, or none",
            )
        name = "alpha_pattern" if is_own else "lora_alpha"
        return _by_alpha(alpha, rank, name, self.is_rank_stabilised, self.name)

    def require_patterns(self, layers: Sequence[str]) -> None:
        """Refuse patterns of alpha that fit no layer: it is not understood which ones they are of.

        Args:
            layers: All of the file.

        Raises:
            BadFile: If there is one.
        """
        unused = [pattern for pattern in self.alphas if not any(_fits(pattern, layer) for layer in layers)]
        if unused:
            raise BadFile(
                f"{self.where}: alpha_pattern has '{unused[0]}', which fits no layer of the LoRA",
                "take the configuration that belongs to the file",
            )


@dataclass(frozen=True)
class Strengths:
    """What a file, and the folder that it is in, say about the strength of its layers."""

    configs: tuple[AdapterConfig, ...]
    alpha: tuple[str, float] | None
    """In the file's notes, and how it is called there."""
    rank: tuple[str, float] | None
    is_rank_stabilised: bool
    kohya: tuple[float, float | None] | None
    """Alpha and rank that kohya's trainers note."""

    @classmethod
    def of(cls, path: Path, notes: Mapping[str, object]) -> "Strengths":
        """Read what is said.

        Args:
            path: File of the LoRA.
            notes: What it holds besides tensors.

        Raises:
            BadFile: If anything about strength is no number, or is not understood; names it.
        """
        configs = []
        if (beside := path.with_name(CONFIG)).exists():
            configs.append(AdapterConfig.read(_table(_read(beside), str(beside)), str(beside), CONFIG))
        if EMBEDDED in notes:
            where = f"{EMBEDDED} of {path}"
            fields = _transformers(_table(notes[EMBEDDED], where))
            configs.append(AdapterConfig.read(fields, where, "the file's metadata"))
        for name, value in notes.items():
            if isinstance(value, Mapping) and "lora_alpha" in value:
                configs.append(AdapterConfig.read(value, f"{name} of {path}", f"the file's {name}"))
        told = {
            name: value
            for name, value in notes.items()
            if isinstance(value, str | int | float) and str(value) not in ("", "None")
        }
        alphas = [(name, _number(told[name], f"{name} of {path}")) for name in ALPHAS if name in told]
        ranks = [(name, _number(told[name], f"{name} of {path}")) for name in RANKS if name in told]
        for found in (alphas, ranks):
            if len({value for _, value in found}) > 1:
                both = " and ".join(f"{name} {value:g}" for name, value in found)
                raise BadFile(f"{path} says {both}", "take a file that says one of them")
        for name, value in told.items():
            if name not in (*ALPHAS, STABILISED) and UNKNOWN.match(name) and not _is_off(value):
                raise BadFile(f"{path} has {name} {value!r}, which is not understood", "take another LoRA")
        kohya = told.get(KOHYA_ALPHA)
        # A LoRA that was made smaller has Dynamic there, and an alpha for every layer.
        is_number = kohya is not None and str(kohya) != "Dynamic"
        return cls(
            tuple(configs),
            next(iter(alphas), None),
            next(iter(ranks), None),
            not _is_off(told.get(STABILISED, False)),
            (
                (_number(kohya, f"{KOHYA_ALPHA} of {path}"), _maybe_number(told.get(KOHYA_RANK)))
                if is_number
                else None
            ),
        )

    def find(self, layer: str, rank: int, alpha: float | None, is_kohya: bool) -> Strength:
        """The strength of a layer.

        Args:
            layer: Its name in the file, without what PEFT puts before it.
            rank: Of its matrices.
            alpha: Its own, if it has one.
            is_kohya: Whether its matrices are called lora_down and lora_up.

        Raises:
            BadFile: If two places contradict each other, or the rank.
        """
        found = [] if alpha is None else [Strength(alpha / rank, f"alpha {alpha:g}")]
        found += [config.find(layer, rank) for config in self.configs]
        if self.alpha is not None:
            name, value = self.alpha
            if self.rank is not None and self.rank[1] != rank:
                raise BadFile(
                    f"The file's {self.rank[0]} is {self.rank[1]:g}, but {layer} has rank {rank}",
                    "download it again",
                )
            found.append(_by_alpha(value, rank, name, self.is_rank_stabilised, "the file's metadata"))
        for other in found[1:]:
            if not math.isclose(other.factor, found[0].factor, rel_tol=AGREE):
                raise BadFile(
                    f"{layer} has strength {found[0].factor:g} by {found[0].told}, but {other.factor:g} by "
                    f"{other.told}",
                    "remove what is wrong",
                )
        if found:
            return found[0]
        if self.kohya is not None:
            value, said = self.kohya
            if not is_kohya:
                return Strength(1.0, f"{KOHYA_ALPHA} {value:g} was multiplied in when the file was converted")
            if said is not None and said != rank:
                raise BadFile(
                    f"The file's {KOHYA_RANK} is {said:g}, but {layer} has rank {rank} and no alpha",
                    "download it again",
                )
            return Strength(value / rank, f"{KOHYA_ALPHA} {value:g} in the file's metadata")
        return Strength(1.0, "no alpha, so it is the rank")


def _by_alpha(alpha: float, rank: int, name: str, is_rank_stabilised: bool, where: str) -> Strength:
    divisor, how = (math.sqrt(rank), ", rank-stabilised,") if is_rank_stabilised else (rank, "")
    return Strength(alpha / divisor, f"{name} {alpha:g}{how} in {where}")


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise BadFile(f"{path} does not describe a LoRA: {error}", "download it again") from error


def _table(text: object, where: str) -> Mapping[str, Any]:
    """The fields of JSON."""
    try:
        fields = parse_json(str(text))
    except ValueError as error:
        raise BadFile(f"{where} does not describe a LoRA: {error}", "download it again") from error
    if not isinstance(fields, dict):
        raise BadFile(f"{where} does not describe a LoRA: it holds no fields", "download it again")
    return fields


def _transformers(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields that are of a transformer; diffusers puts `transformer.` before them."""
    own = {
        name.removeprefix("transformer."): v for name, v in fields.items() if name.startswith("transformer.")
    }
    return own or fields


def _number(value: object, where: str) -> float:
    """A number that is finite."""
    number = _maybe_number(value)
    if number is None or not math.isfinite(number):
        raise BadFile(f"{where} is {value!r}, no finite number", "download it again, or take another LoRA")
    return number


def _maybe_number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _is_off(value: object) -> bool:
    return str(value).lower() in ("false", "0", "no")


def _numbers(fields: object, where: str) -> dict[str, float]:
    """Numbers by the pattern of the layers that they are of."""
    if not fields:
        return {}
    if not isinstance(fields, Mapping):
        raise BadFile(f"{where} is {fields!r}, no table", "download it again")
    found = {str(pattern): _number(value, f"{where}: {pattern}") for pattern, value in fields.items()}
    for pattern in found:
        try:
            re.compile(pattern)
        except re.error as error:
            raise BadFile(f"{where}: '{pattern}' is no pattern ({error})", "download it again") from error
    return found


def _matching(patterns: Mapping[str, float], layer: str) -> str | None:
    """The first pattern that fits a layer, as in PEFT."""
    return next((pattern for pattern in patterns if _fits(pattern, layer)), None)


def _fits(pattern: str, layer: str) -> bool:
    """Whether a pattern fits the end of a layer's name, in whole parts."""
    return re.match(rf"(.*\.)?({pattern})$", layer) is not None
