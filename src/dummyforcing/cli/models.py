"""`dummyforcing models`: what there is to make videos with, and getting it onto the disk."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from dummyforcing.cli.common import FILES, bar, open_files
from dummyforcing.cli.flags import FlagsOf, Found, Given, command
from dummyforcing.cli.terminal import tell, wrote
from dummyforcing.errors import BadFile
from dummyforcing.pipeline.options import VideoOptions

DESCRIPTION = """Show, check and convert models; without a command, list them.

A public model's files are fetched when they are first needed. Put by hand, they are found with
--weights (the transformer), --lora (of a model that has one) and --base (a folder with text encoder,
tokenizer and VAE):
  dummyforcing models check self-forcing --weights self_forcing_dmd.pt --base Wan2.1-T2V-1.3B

A model of your own is a file with a public one's name and what differs:
  like = "self-forcing"
  source = { file = "my.pt", key = "generator_ema" }"""

ModelName = Annotated[Positional[str], arg(metavar="NAME|FOLDER|FILE")]


@command()
def list_models() -> Found:
    """List the models: those that come along, and the public ones with their licences."""
    from dummyforcing.cli.report import all_models, print_models

    print_models()
    return {"models": [asdict(preset) for preset in all_models()]}


@command(load=FILES, video=FlagsOf(VideoOptions, only=("num_frames", "size", "policy")))
def show(
    *,
    model: ModelName,
    load: Given,
    video: Given,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
) -> Found:
    """Show all about a model: files, licence, settings, and the memory that a video takes.

    What a long video at another size needs, with the cache that the model was trained for:
      dummyforcing models show longlive --frames 957 --size 640x352 --policy native

    Args:
        model: A model of `dummyforcing models`, a folder in the layout of the bundled one, or a preset file.
        load: Where the files are.
        video: Flags of the video.
        dtype: Precision of the computation.
    """
    from dummyforcing.cli.report import memory_needs, print_memory, print_model
    from dummyforcing.pipeline.devices import DTYPES
    from dummyforcing.pipeline.request import make_request

    files = open_files(model, load)
    request = make_request(files, "a video", **video)
    print_model(files)
    needs = memory_needs(files, request, DTYPES[dtype])
    print_memory(files, request, DTYPES[dtype], needs)
    return {
        **asdict(files.preset),
        "weights": str(files.transformer),
        "loras": [[str(place), scale] for place, scale in files.loras],
        "base": str(files.base),
        "parameters": dict(files.parameters),
        "bytes": {how: asdict(need[0]) for how, need in needs.items()},
    }


@command(load=FILES)
def check(
    *,
    model: ModelName,
    load: Given,
    deep: FlagCreatePairsOff[bool] = False,
) -> Found:
    """Check that a model's files are whole and hold the right tensors, without loading or fetching them.

    A model, as far as its files are here:
      dummyforcing models check self-forcing

    A file that was downloaded, to see what it is; of a LoRA, its layers, ranks and strengths:
      dummyforcing models check self_forcing_dmd.pt
      dummyforcing models check style.safetensors

    All weights, one by one, for NaN and infinite numbers:
      dummyforcing models check self-forcing --deep

    Args:
        model: A model of `dummyforcing models`, a folder or preset file, or a file or folder of weights.
        load: Where the files are.
        deep: Read all weights and look for NaN and infinite numbers; takes as long as loading does.
    """
    from dummyforcing.checkpoints.convert import check_file, check_model
    from dummyforcing.cli.report import print_reports
    from dummyforcing.presets.catalog import may_be_weights

    if may_be_weights(model):
        reports = [check_file(Path(model), deep=deep)]
    else:
        reports = check_model(open_files(model, load), deep=deep)
    print_reports(reports)
    problems = sum(bool(report.problem) for report in reports)
    if problems:
        raise BadFile(f"{problems} of the {len(reports)} parts of '{model}' cannot be used", "see above")
    return {"parts": [asdict(report) for report in reports]}


@command(load=FILES)
def convert(
    *,
    model: ModelName,
    output: Annotated[Path, arg(aliases=["-o"], metavar="FOLDER")],
    load: Given,
    only: Annotated[
        Literal["transformer"] | None, arg(metavar="transformer", help_behavior_hint="(default: all)")
    ] = None,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
) -> Found:
    """Write a model as a folder of safetensors that loads faster and needs nothing else.

    The public model with a LoRA merged:
      dummyforcing models convert self-forcing --lora style.safetensors:0.8 -o my-style
      dummyforcing generate "a fox in the snow" --model my-style

    Args:
        model: A model of `dummyforcing models`, a folder in the layout of the bundled one, or a preset file.
        output: The new folder.
        load: Where the files are.
        only: Write the transformer alone; text encoder, tokenizer and VAE stay where they are.
        dtype: Precision of the weights.
    """
    from dummyforcing.checkpoints.convert import WEIGHTS
    from dummyforcing.checkpoints.convert import convert as write
    from dummyforcing.pipeline.devices import DTYPES

    files = open_files(model, load)
    paths = []
    with bar(desc="converting", unit="file") as shown:
        for path in write(files, output, DTYPES[dtype], (only,) if only else WEIGHTS):
            paths.append(output / path)
            shown.update()
    for path in paths:
        wrote(path)
    tell(f"{output} is ready: dummyforcing generate PROMPT --model {output}")
    return {"folder": str(output)}
