"""The tables of a rollout tell the kernel that places heads where to write: in Triton's interpreter.

The interpreter must be on before Triton is imported, so the rollouts run in a process of their own.
"""

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from dummyforcing.kernels import ops
from dummyforcing.runtime.fused import FusedWan
from tests.interpreter import INTERPRETED, run_interpreted
from tests.oracles import random_plan, small_model
from tests.runtime.test_fused import rollout

pytestmark = pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_in_the_interpreter() -> None:
    assert "1 passed" in run_interpreted(__file__)


@pytest.mark.skipif(not INTERPRETED, reason="needs the interpreter")
def test_the_kernel_writes_where_the_heads_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """By addresses alone: the buffers of the cache are not handed to it."""
    from dummyforcing.kernels import ops_triton

    calls = []

    def place(
        heads: tuple[Tensor, Tensor, Tensor],
        targets: ops.Targets,
        *,
        tokens: int,
        gains: tuple[Tensor, Tensor],
        rope: tuple[Tensor, Tensor],
        eps: float,
    ) -> None:
        calls.append(targets)
        tables, dtype = (targets.table, targets.slots), heads[0].dtype
        ops_triton.place_heads(heads, tables, dtype, tokens, tokens, gains, rope, eps, with_queries=True)

    model = small_model(layers=2, heads=5)
    plan = random_plan(2, 5, seed=0)
    plain, _ = rollout(model, plan=plan, batch=2, frames=9)
    monkeypatch.setattr("dummyforcing.runtime.heads.place_heads", place)
    placed, _ = rollout(model, plan=plan, batch=2, frames=9, fused=FusedWan(model))
    torch.testing.assert_close(placed, plain, atol=1e-4, rtol=0)
    assert len(calls) == 2 * 3 * 5
