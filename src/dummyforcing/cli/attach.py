"""`dummyforcing attach`: what a checkout of a public repository offers to attach to."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from dummyforcing.cli.flags import Found, command
from dummyforcing.cli.terminal import tell
from dummyforcing.errors import BadFile

EXAMPLE = """In its code, once the pipeline is there:
  import dummyforcing
  handle = dummyforcing.attach(pipeline, policy="dummy")"""


@command()
def attach(*, check: Annotated[Path, arg(metavar="PATH")]) -> Found:
    """Say what a checkout of a public repository, or a fork, offers to attach to.

    Its Python files are read, not run, so that nothing need be installed and no weights be there:
      dummyforcing attach --check Self-Forcing

    Attaching itself is a line in Python: dummyforcing.attach(pipeline, policy="dummy").

    Args:
        check: Folder of the checkout, or one Python file.
    """
    from dummyforcing.integrations.attach.checkout import read_checkout

    found = read_checkout(check)
    for one in found.attentions:
        what = one.problem and f"cannot be attached to: {one.problem}"
        tell(f"{one.file}:{one.line}  {one.name}  {what or f'can be attached to, as {one.family}'}")
    for one in found.pipelines:
        what = one.problem and f"cannot be used: {one.problem}"
        tell(f"{one.file}:{one.line}  {one.name}  {what or 'its dense KV buffers are left out'}")
    for name in found.unreadable:
        tell(f"{name}  is no Python that can be read, and is left out")
    if not found.families:
        raise BadFile(
            f"{check} has no self-attention that can be attached to",
            "see above" if found.attentions else "give a checkout of Self-Forcing, or of a model like it",
        )
    tell(EXAMPLE)
    return {**asdict(found), "families": [family.name for family in found.families]}
