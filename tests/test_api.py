import subprocess
import sys

import pytest

import dummyforcing

HEAVY = ("torch", "diffusers", "transformers", "av", "matplotlib")


def test_public_names() -> None:
    assert dummyforcing.__all__ == [
        "Attachment",
        "BadFile",
        "BadRequest",
        "Chunk",
        "DummyForcingPipeline",
        "Guard",
        "HeadContext",
        "Measures",
        "NoSuchDevice",
        "NotEnoughMemory",
        "NotFinite",
        "PictureWarning",
        "Plan",
        "Policy",
        "RequestWarning",
        "Rollout",
        "Timings",
        "TrainedLengthWarning",
        "TrainedSizeWarning",
        "UnknownWordsWarning",
        "UserError",
        "Video",
        "VideoOutput",
        "attach",
        "load",
    ]
    for name in dummyforcing.__all__:
        assert getattr(dummyforcing, name).__name__ == name
        assert name in dir(dummyforcing)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = dummyforcing.lode


@pytest.mark.parametrize("statement", ["import dummyforcing", "import dummyforcing.cli"])
def test_import_loads_nothing_heavy(statement: str) -> None:
    code = f"{statement}; import sys; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_core_needs_no_media_libraries() -> None:
    code = "from dummyforcing import Policy, Plan, HeadContext; import dummyforcing.sampling.samplers, sys\n"
    code += f"print([name for name in {HEAVY[1:]} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
