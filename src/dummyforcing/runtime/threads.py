"""Sets how the threads of CPU kernels wait for each other."""

import os


def spin_briefly() -> None:
    """Let libgomp's threads spin for a short while before they sleep, unless the environment says otherwise.

    By default they spin for milliseconds: beside one other busy process on two cores that made a chunk take
    35 s in place of 2 s. Not to spin at all costs 40% on an idle machine. libgomp reads this when torch is
    imported, and never again.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
