"""`dummyforcing bench --viewers`: how many live viewers a machine has time for."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dummyforcing.cli.common import load_for
from dummyforcing.cli.flags import Given
from dummyforcing.cli.serve import require_server_packages
from dummyforcing.errors import BadRequest

if TYPE_CHECKING:
    from dummyforcing.checkpoints.model_files import ModelFiles
    from dummyforcing.pipeline.pipeline import DummyForcingPipeline


def one_each(**several: tuple[Any, ...]) -> dict[str, Any]:
    """The one value of each option; None where none is given.

    Raises:
        BadRequest: If there are several.
    """
    for name, values in several.items():
        if len(values) > 1:
            raise BadRequest("All viewers watch videos of one kind", f"give one {name}", name)
    return {name: values[0] if values else None for name, values in several.items()}


@dataclass(frozen=True)
class Audience:
    """Viewers that are to watch, and what they see."""

    files: "ModelFiles"
    load: Given
    random: bool
    """Whether the weights are made up."""
    viewers: tuple[int, ...]
    seconds: float
    size: str | None
    policy: str | None
    fp8: Any
    gpus: int

    def __post_init__(self) -> None:
        if min(self.viewers) < 1:
            raise BadRequest("Nobody would watch", "take 1 viewer or more", "viewers")
        if self.gpus > 1 and self.random:
            raise BadRequest("Viewers of several GPUs need a model's own weights", "give weights", "gpus")
        require_server_packages()

    def measure(self, report: Callable[[str], None]) -> dict[str, Any]:
        """Start a server and let them watch, one number after the other.

        Args:
            report: Is told what is done next.

        Returns:
            The results, ready for `write_results`.
        """
        from dummyforcing.client.viewers import measure_viewers
        from dummyforcing.pipeline.request import make_request
        from dummyforcing.runtime.apart import run_apart

        options = {name: value for name in ("size", "policy") if (value := getattr(self, name))}
        request = make_request(self.files, "a video", **options)
        load = {**self.load, "fp8": self.fp8, "gpus": self.gpus}
        if self.random:
            pipeline = run_apart(self._random_pipeline)
        else:
            pipeline = run_apart(partial(load_for, self.files, request, load))
        try:
            with warnings.catch_warnings(action="ignore"):  # nobody looks at these videos
                measured = measure_viewers(pipeline, self.viewers, self.seconds, options, report=report)
        finally:
            pipeline.close()
        preset = self.files.preset
        return {
            "model": preset.name,
            "weights": "random" if self.random else "real",
            "fp8": self.fp8,
            "gpus": self.gpus,
            "policy": self.policy or "dummy",
            "size": "{1}x{0}".format(*request.size),
            "with_vae": True,
            **measured,
        }

    def _random_pipeline(self) -> "DummyForcingPipeline":
        from dummyforcing.bench.candidates import build_candidates
        from dummyforcing.pipeline.devices import choose_device, choose_dtype

        device = choose_device(self.load.get("device", "auto"))
        dtype = choose_dtype(self.load.get("torch_dtype"), device)
        (built,) = build_candidates(self.files, (self.fp8,), device, dtype, random=True).values()
        return built.pipeline
