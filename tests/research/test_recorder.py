"""Training steps that are recorded as CUDA graphs."""

from collections.abc import Callable

import pytest
import torch

from research.training.optim import Recorder


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_work_keeps_what_it_reads() -> None:
    """Nothing else may hold the tensors of a step: new ones must not take their place."""

    def steps(number: float) -> Callable[[], torch.Tensor]:
        table = torch.full((4,), number, device="cuda")
        return lambda: table * 2

    replay = Recorder(torch.device("cuda"))(steps(3.0))
    others = [torch.full((4,), -1.0, device="cuda") for _ in range(1000)]
    assert replay().tolist() == [6.0] * 4
    del others
