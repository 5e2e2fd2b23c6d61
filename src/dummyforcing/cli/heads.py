"""`dummyforcing heads`: what every head is."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from dummyforcing.cli.common import (
    Device,
    DType,
    Fraction,
    Model,
    NewPlanFile,
    PlanFile,
    PolicyName,
    Size,
    check_output,
    load_for,
    parse_size,
)
from dummyforcing.errors import UserError


def heads(
    prompt: Annotated[
        Positional[str | None], arg(metavar="PROMPT", help_behavior_hint="(or give --plan)")
    ] = None,
    output: Annotated[Path, arg(aliases=["-o"], metavar="FILE.png")] = Path("heads.png"),
    model: Model = "tiny",
    size: Size = None,
    seed: int = 0,
    policy: PolicyName = "dummy",
    dummy_fraction: Fraction = None,
    plan: PlanFile = None,
    save_plan: NewPlanFile = None,
    device: Device = "auto",
    dtype: DType = None,
) -> None:
    """Show what every head is: print a head plan, and draw it as a map of layers x heads.

    Find the plan by making the first chunks of a video, and keep it:
      dummyforcing heads "a red ball bounces on a green floor" -o heads.png --save-plan plan.json

    Draw one that was found before:
      dummyforcing heads --plan plan.json -o heads.png

    Args:
        prompt: What the video shows in which the heads are watched.
        output: The PNG to write; an older one is replaced.
        model: A model of `dummyforcing models`, or a folder in the layout of the bundled one.
        size: Width and height in pixels, multiples of 16; a model is at its best at its own size.
        seed: Of the noise.
        policy: A policy that classifies heads: dummy, anchored or official.
        dummy_fraction: Share of all heads that become dummy.
        plan: Head plan to show instead of finding one.
        save_plan: Where to write the plan that was found.
        device: Where to compute; auto takes a GPU if there is one.
        dtype: Precision of the computation.
    """
    check_output(output, ".png")
    check_output(save_plan, ".json")
    if (prompt is None) == (plan is None):
        raise UserError("Give either a prompt, to find a head plan, or --plan, to show one.")

    from dummyforcing.plan import Plan
    from dummyforcing.plots import print_head_map, save_head_map
    from dummyforcing.request import ModelFolder

    if plan is not None:
        shown = Plan.load(plan)
    else:
        folder = ModelFolder.open(model)
        request = folder.request(
            str(prompt), size=parse_size(size), seed=seed, policy=policy, dummy_fraction=dummy_fraction
        )
        shown = load_for(folder, request, device, dtype).find_plan(request)
    if save_plan is not None:
        shown.save(save_plan)
    save_head_map(output, shown)
    print_head_map(shown)
