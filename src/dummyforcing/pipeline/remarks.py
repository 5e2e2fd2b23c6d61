"""What is to be said of a request that can be done, but perhaps not as it is meant."""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Protocol

from dummyforcing.errors import RequestWarning, TrainedLengthWarning, TrainedSizeWarning, UnknownWordsWarning
from dummyforcing.models.text_encoder import PromptTokens
from dummyforcing.pipeline.request import Request
from dummyforcing.presets.preset import Preset

FAR = 4
"""So many times as many pixels as a model was trained with, or as few, are another kind of picture to it."""
QUOTED = 200
"""Characters of what has no effect that are told."""

LISTED = 60
"""Words at most that are listed when another one is not known."""


class Known(Protocol):
    """What has to be known of a model, loaded here or not."""

    @property
    def preset(self) -> Preset:
        """Its description."""

    @property
    def text(self) -> PromptTokens:
        """What it reads."""


def remarks(model: Known, request: Request) -> Iterator[RequestWarning]:
    """What is to be said of a request."""
    preset, policy = model.preset, request.policy
    longest = None if preset.overlap_frames else preset.max_frames
    if longest is not None and (request.frames is None or request.frames > longest):
        yield TrainedLengthWarning(
            f"Model '{preset.name}' was trained for videos of {preset.pixel_frames(longest)} "
            "pixel frames; a longer one may drift or freeze."
        )
    if not 1 / FAR <= math.prod(request.size) / math.prod(preset.size) <= FAR:
        (height, width), (trained_height, trained_width) = request.size, preset.size
        yield TrainedSizeWarning(
            f"Model '{preset.name}' was trained with {trained_width}x{trained_height} pixels; "
            f"{width}x{height} are far from that, and what it makes of them may be nonsense."
        )
    yield from remarks_on_prompts(model, [*request.prompts, *(switch.prompt for switch in request.switches)])
    if request.plan is not None and policy.roles is None:
        yield RequestWarning(
            f"The head plan says what the heads see; policy '{policy.name}' has no say beside it."
        )
    if request.switches:
        yield from remarks_on_change(model, request)


def remarks_on_prompts(model: Known, prompts: Sequence[str]) -> Iterator[RequestWarning]:
    """What is to be said of prompts; those that are empty came as embeddings."""
    prompts = [prompt for prompt in prompts if prompt]
    words = dict.fromkeys(word for prompt in prompts for word in model.text.unknown_words(prompt))
    if words:
        yield UnknownWordsWarning(
            f"Model '{model.preset.name}' does not know the word{'s' * (len(words) > 1)} "
            f"{', '.join(words)}; {_instead(words, model.text.known_words())}.",
            tuple(words),
        )
    for text in filter(None, (model.text.without_effect(prompt) for prompt in prompts)):
        yield RequestWarning(
            f"The prompt is longer than the {model.text.text_len} tokens that model '{model.preset.name}' "
            f"reads; this end of it has no effect: {text[:QUOTED]!r}{' ...' * (len(text) > QUOTED)}."
        )


def _instead(words: Iterable[str], known: Sequence[str]) -> str:
    """What to write in place of words that a model does not know."""
    if len(known) <= LISTED:
        return f"it knows {', '.join(known)}"
    near = dict.fromkeys(one for word in words for one in get_close_matches(word.lower(), known, 1))
    return f"the nearest that it knows: {', '.join(near)}" if near else "say it in other words"


def remarks_on_change(model: Known, request: Request) -> Iterator[RequestWarning]:
    """What is to be said of a change of the prompt on the way."""
    preset = model.preset
    contexts = request.policy.contexts if request.plan is None else request.plan.table.values()
    most = [math.inf if context.total is None else context.total for context in contexts]
    if 0 < preset.recache_frames < max(most) and not preset.global_sink:
        yield RequestWarning(
            f"With a change of the prompt, model '{preset.name}' writes its newest {preset.recache_frames} "
            "latent frames again, and no head sees what was before them any more."
        )


def warn(said: Iterable[RequestWarning]) -> None:
    """Warn the caller of the function that calls this one."""
    for one in said:
        warnings.warn(one, stacklevel=3)
