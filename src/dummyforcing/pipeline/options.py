"""Everything that can be asked for, once: fields with units, bounds and documentation.

Keyword arguments of the pipeline, flags of the command line and overrides of presets all follow from the
dataclasses here. To add an option, add a field; what it does is up to `request.py` (or `pipeline.py`).

Importing this loads no library, so that `--help` is instant.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from inspect import Parameter
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypeVar

from dummyforcing.errors import BadRequest
from dummyforcing.files.records import nearest
from dummyforcing.pipeline.option import Documented, documented, option

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

    from dummyforcing.method.plan import Plan
    from dummyforcing.method.policy import OwnPolicy, Policy
    from dummyforcing.models.wan import CausalWan
    from dummyforcing.sampling.guard import Guard
    from dummyforcing.sampling.teacache import Calibration


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Options of loading a model."""

    weights: "str | Path | None" = option(None, metavar="FILE|FOLDER|OWNER/NAME:FILE", hint="the model's own")
    """Transformer's weights to use instead of the model's own and its LoRA: a file or a folder, here or on
    the Hugging Face Hub, with Wan's names or diffusers'."""
    base: "str | Path | None" = option(None, metavar="FOLDER|REPOSITORY", hint="the model's own")
    """Where to find text encoder, tokenizer and VAE instead: a folder, or a repository on the Hub."""
    lora: "str | Sequence[str]" = option((), metavar="FILE[:SCALE]", is_repeated=True)
    """LoRA to merge into the transformer; may be several."""
    device: "str | torch.device" = option("auto", metavar="auto|cpu|cuda|cuda:N")
    """Where to compute; auto takes a GPU if there is one. In Python, auto leaves a transformer that is handed
    in where it is."""
    torch_dtype: "str | torch.dtype | None" = option(
        None,
        flag="dtype",
        choices=("float32", "bfloat16"),
        metavar="{float32,bfloat16}",
        hint="bfloat16 on a GPU, float32 elsewhere",
    )
    """Precision of the computation."""
    gpus: int = option(1, kind=int, metavar="N", least=1)
    """How many GPUs of this machine make each video together; with device cpu, so many processes. Under
    torchrun, as many as it started."""
    offload: bool = option(False, kind=bool)
    """Spare the GPU's memory: the text encoder runs in the main memory, the VAE's weights come from there
    only to decode. A 1.3B model then fits into 12 GB."""
    fp8: Literal["none", "vae", "linear", "all"] = option("none", choices=("none", "vae", "linear", "all"))
    """What is computed in float8, for speed at some error: none, vae (most convolutions of the VAE's
    decoder: the error is below what 8 bits of a pixel show), linear (the linear layers, too) or all
    (attention, too). For GPUs of compute capability 8.9 or later, for convolutions 9.0; a CPU emulates it,
    slowly."""
    vae: "str | Path | AutoencoderKLWan | None" = option(None, metavar="FILE", hint="the VAE's own decoder")
    """Small decoder of TAEHV (taew2_1.pth) to use on models of Wan 2.1: faster, with less detail. In Python
    also a whole VAE, a loaded `AutoencoderKLWan`."""
    transformer: "WanTransformer3DModel | CausalWan | None" = option(
        None, is_flag=False, instead_of=("weights",)
    )
    """A loaded transformer of diffusers (or of another pipeline) to use in place of the model's own and its
    LoRA. Weights that have the dtype and the device already are shared with it."""
    text_encoder: "UMT5EncoderModel | None" = option(None, is_flag=False)
    """A loaded text encoder to use in place of the model's own."""
    tokenizer: "PreTrainedTokenizerBase | None" = option(None, is_flag=False)
    """Its tokenizer, likewise."""


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """Options of a video besides its prompt."""

    num_frames: int | None = option(81, kind=int, flag="frames", metavar="N", unit="pixel frames", least=1)
    """Pixel frames; must fill whole chunks: 9, 21, 33, ... 81, ... with 3 latent frames a chunk. In Python,
    None makes a video without end, for `start` and `stream`."""
    seconds: float | None = option(
        None,
        kind=float,
        metavar="S",
        hint="the number of frames decides",
        unit="s",
        above=0,
        instead_of=("num_frames",),
    )
    """Length of the video instead of a number of frames; the nearest length that fills whole chunks is
    taken."""
    size: "str | tuple[int, int] | None" = option(
        None, metavar="480p|720p|1080p|WxH", hint="the model's own", unit="pixels"
    )
    """Width x height in pixels, multiples of 16, or a name: 480p is 832x480, 720p 1280x720, 1080p
    1920x1088. A model is at its best at its own size. In Python also a pair (height, width)."""
    height: int | None = option(None, kind=int, is_flag=False, unit="pixels", least=16, instead_of=("size",))
    """Height in pixels, a multiple of 16."""
    width: int | None = option(None, kind=int, is_flag=False, unit="pixels", least=16, instead_of=("size",))
    """Width in pixels, a multiple of 16."""
    seed: int = option(0, kind=int, metavar="N", least=0, most=2**63 - 1)
    """Of the noise; the same seed gives the same video. Sample i of a batch has the seed + i."""
    generator: "torch.Generator | Sequence[torch.Generator] | None" = option(
        None, is_flag=False, instead_of=("seed",)
    )
    """Draws the noise instead of a seed; of a batch, one for each prompt."""
    prompt_embeds: "torch.Tensor | None" = option(None, is_flag=False)
    """Text encoder's output instead of a prompt, `(B, text_len, text_dim)`."""
    policy: "str | Policy | OwnPolicy | Callable[[], object]" = option(
        "dummy", metavar="NAME|FILE.py:NAME|MODULE:NAME"
    )
    """Which past frames the heads see: dummy (Dummy Forcing: by their roles), anchored (by their roles, one
    frame more each), dense (all) or native (as the model was trained). Also window:SINK,RECENT (so many first
    and last ones), long (by their roles, some of them far back, the others one frame, within a budget;
    long:CAP: CAP frames back) and official (as the public code). Installed packages may add names. In Python
    also a policy of your own: any object that has roles and assign(scores), or a function or class that makes
    one."""
    dummy_fraction: float | None = option(
        None, kind=float, metavar="0..1", hint="the model's own", least=0, most=1
    )
    """Share of all heads that become dummy."""
    budget: str | None = option(None, metavar="window:N|SIZE", hint="window:12 with policy long")
    """What policy long may cost: window:12, as much as if every head saw 12 latent frames, the chunk
    included; or the size of the KV cache, such as 500MB or 2GB."""
    plan: "Plan | Sequence[Plan] | str | Path | None" = option(
        None, metavar="FILE.json|shipped", hint="find one"
    )
    """Head plan to use from the first chunk on; shipped: the one that comes with the model. In Python also a
    list of plans, one for each video of a batch."""
    guard: "Guard | float | None" = option(
        None,
        kind=float,
        flag="reclassify",
        metavar="TOLERANCE",
        hint="heads are classified once",
        least=0,
        most=1,
    )
    """Look every 20 chunks which share of their attention dummy heads spend on the chunk itself; if it has
    moved by more than this since the first look, classify all heads again at the next chunk. With the bundled
    model 0.01 is more than chance, but its videos did not gain by it."""
    image: "str | Path | Image | None" = option(None, metavar="FILE", hint="none")
    """Image that the video begins with, on models that can: see the list of models. It is white where it is
    transparent. In Python also an image of PIL."""
    video: "str | Path | Sequence[Image] | None" = option(None, metavar="FILE", hint="none")
    """Video that the new one goes on from: it begins with the last 9 pixel frames of that one, with 3 latent
    frames a chunk, which count in its length. Krea Realtime makes the whole video from it instead. In Python
    also images of PIL, one for each frame of the new video's rate."""
    video_from: Literal["end", "start"] = option("end", choices=("end", "start"))
    """Where in that video to begin: with its last frames, or its first ones."""
    strength: float | None = option(None, kind=float, metavar="0..1", hint="0.7", above=0, most=1)
    """How much of that video is changed then; 1 is all of it."""
    switches: "Sequence[tuple[float, str] | str]" = option(
        (), flag="switch", metavar="SECONDS:PROMPT", is_repeated=True
    )
    """From this second on, the prompt is another one. It takes effect where a chunk begins, then or later:
    every 0.75 s with 3 latent frames a chunk. May be several."""
    fade: int = option(1, kind=int, metavar="CHUNKS", unit="chunks", least=1)
    """Chunks over which a prompt fades into the next."""
    teacache: "float | str | Sequence[int] | Calibration | None" = option(
        None, metavar="X|FILE.json[:ERROR]|shipped", hint="all steps run"
    )
    """Leave out denoising steps, faster at some cost in quality. A number: those whose expected error is
    below it (TeaCache; 0.2 in the public code). A file: those that 'dummyforcing teacache calibrate' found;
    shipped: the file that comes with the model. In Python also the numbers of the steps, from 0."""


@dataclass(frozen=True, kw_only=True)
class CallOptions(VideoOptions):
    """Options of a video that is made in one call, besides its prompt."""

    output_type: Literal["np", "pt", "pil", "latent"] = option(
        "np", choices=("np", "pt", "pil", "latent"), is_flag=False
    )
    """What the frames are: np float32 `(B, F, H, W, 3)` and pt `(B, F, 3, H, W)` in [0, 1], pil a list of
    images per video, latent what the VAE was not asked to decode, `(B, F, C, h, w)`."""
    progress: bool = option(False, kind=bool, is_flag=False)
    """Show a progress bar, in a terminal or a notebook."""
    callback_on_chunk_end: "Callable[..., object] | None" = option(None, is_flag=False)
    """Called with every finished piece, `callback(rollout, number, chunk)`; what it asks of the rollout, such
    as `set_prompt`, holds for the chunks that come."""


REFUSED = {
    "num_inference_steps": "these models are distilled to the steps of their preset",
    "guidance_scale": "guidance is distilled into these models",
    "negative_prompt": "guidance is distilled into these models",
    "return_dict": "a call gives a VideoOutput",
    "scheduler": "the noise levels are those that the model was distilled to",
    "timesteps": "the noise levels are those that the model was distilled to",
    "sigmas": "the noise levels are those that the model was distilled to",
}
"""What users of diffusers may ask for, and why there is none."""

Opt = TypeVar("Opt")
Owner = TypeVar("Owner")
Given = TypeVar("Given")
Result = TypeVar("Result")
Asked = TypeVar("Asked", contravariant=True)
Made = TypeVar("Made", covariant=True)
P = ParamSpec("P")


def choose(kind: Callable[P, Opt], given: Mapping[str, Any], preset: Mapping[str, Any] | None = None) -> Opt:
    """Make options of what was given, and check what can be checked without a model.

    Args:
        kind: The class of the options.
        given: Their values by name.
        preset: Values that hold where nothing is given.

    Returns:
        The options.

    Raises:
        BadRequest: If there is no such option (names the nearest), a value has another type than its option
            or is out of bounds, or two options say the same.
    """
    assert isinstance(kind, type)
    known = {one.name: one for one in documented(kind)}
    # What is given also wins over what the preset says in other words.
    said = {other for name in given if name in known for other in _in_other_words(name, known)}
    values = {**{name: value for name, value in (preset or {}).items() if name not in said}, **given}
    for name, value in values.items():
        if name in REFUSED:
            raise BadRequest(f"There is no {name}: {REFUSED[name]}", "leave it out", name)
        if name not in known:
            raise BadRequest(f"There is no option '{name}'", nearest(name, known))
        values[name] = known[name].checked(value)
        for other in known[name].about.instead_of:
            if given.get(name) is not None and given.get(other) is not None:
                raise BadRequest(
                    f"{other}= and {name}= say the same in other words", "give one of them", name
                )
    result: Opt = kind(**values)
    return result


def _in_other_words(name: str, known: Mapping[str, Documented]) -> set[str]:
    """The options that say the same as one of them."""
    return {*known[name].about.instead_of, *(n for n, one in known.items() if name in one.about.instead_of)}


class Call(Protocol[Asked, P, Made]):
    """A method with options, as its caller sees it."""

    def __call__(self, prompt: Asked | None = None, *args: P.args, **options: P.kwargs) -> Made:
        """Call it with a prompt, and options by name."""


class Method(Protocol[Asked, P, Made]):
    """A method with options, as its class sees it."""

    def __get__(self, owner: object, kind: type[object] | None = None) -> Call[Asked, P, Made]:
        """Bind it."""


def with_options(
    kind: Callable[P, Opt],
) -> Callable[[Callable[[Owner, Given, Opt], Result]], Method[Given, P, Result]]:
    """Give a method, in place of one argument, the keyword arguments that an options class has."""

    def decorate(method: Callable[[Owner, Given, Opt], Result]) -> Method[Given, P, Result]:
        @wraps(method)
        def call(self: Owner, prompt: Given | None = None, **options: Any) -> Result:
            defaults = getattr(self, "option_defaults", None)
            return method(self, prompt, choose(kind, options, defaults))  # type: ignore[arg-type]

        call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                Parameter("self", Parameter.POSITIONAL_OR_KEYWORD),
                Parameter("prompt", Parameter.POSITIONAL_OR_KEYWORD, default=None),
                *(
                    Parameter(one.name, Parameter.KEYWORD_ONLY, default=one.default, annotation=one.type)
                    for one in fields(kind)  # type: ignore[arg-type]
                ),
            ]
        )
        return call  # type: ignore[return-value]

    return decorate
