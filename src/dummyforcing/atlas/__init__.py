"""Where the heads of a model look: measured over many videos, steps and chunks.

    atlas = record(load("tiny"), ["a red ball bounces", "a blue star spins"])
    atlas.save("atlas.npz")
    plan = atlas.plan(parse_policy("dummy"))        # one plan for all videos
    write_report("atlas.html", atlas, parse_policy("dummy"))

Source: Dummy Forcing (arXiv:2601.20499), the study of attention heads.
"""

from dummyforcing.atlas.data import Atlas, Settings
from dummyforcing.atlas.recorder import record
from dummyforcing.atlas.report import write_report

__all__ = ["Atlas", "Settings", "record", "write_report"]
