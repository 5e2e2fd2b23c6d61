"""TeaCache: leave out a network call whose residual hardly differs from that of the one before.

The public code decides from the timestep embedding alone. Timesteps are fixed, so its decisions are too: they
are worked out once, as a table for all chunks (`skip_table`). What a model loses can be measured instead, see
`calibration.calibrate`; the result is a `Calibration`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

from torch import Tensor

from dummyforcing.errors import BadFile, BadRequest
from dummyforcing.files.reading import read_json
from dummyforcing.files.records import as_text, build
from dummyforcing.files.writing import replacing
from dummyforcing.models.wan import TimeEmbedding
from dummyforcing.presets.preset import Preset, ScheduleArgs

FORMAT = "dummyforcing teacache 1"

COEFFICIENTS = (2396.76752, -1311.10545, 201.331979, -8.29855975, 0.137887774)
"""Of the polynomial from relative change to expected error, highest power first (Wan 2.1 1.3B)."""


def skip_table(
    embeddings: Sequence[TimeEmbedding],
    timesteps: Sequence[float],
    threshold: float = 0.2,
    coefficients: Sequence[float] = COEFFICIENTS,
) -> tuple[bool, ...]:
    """Tell which calls of a chunk to leave out.

    A call is left out while the expected error, summed up since the last call that ran, is below the
    threshold. The first step and the commit pass always run, as do timesteps 1000 and 0.

    Args:
        embeddings: From `CausalWan.embed_time`, of the chunk's calls in order: denoising steps, then commit.
        timesteps: Of the same calls.
        threshold: Highest expected error; 0.2 in the public code.
        coefficients: Of the polynomial.

    Returns:
        For each call, whether it is left out.

    Source: TeaCache (arXiv:2411.19108), as used by the public Dummy Forcing code.
    """
    chooser = SkipChooser(threshold, coefficients)
    last = len(embeddings) - 1
    return tuple(
        chooser.leaves_out(embedding, call in (0, last) or timestep in (0, 1000))
        for call, (embedding, timestep) in enumerate(zip(embeddings, timesteps, strict=True))
    )


class SkipChooser:
    """Chooses call by call, in their order, which ones to leave out; see `skip_table`."""

    def __init__(self, threshold: float = 0.2, coefficients: Sequence[float] = COEFFICIENTS) -> None:
        """Begin with nothing.

        Args:
            threshold: Highest expected error; 0.2 in the public code.
            coefficients: Of the polynomial.
        """
        self._threshold, self._coefficients = threshold, coefficients
        self._error = 0.0
        self._before: Tensor | None = None

    def leaves_out(self, embedding: TimeEmbedding, must_run: bool) -> bool:
        """Tell whether the next call is left out.

        Args:
            embedding: Of its timestep.
            must_run: Whether it is none that may be.
        """
        before, self._before = self._before, embedding.blocks.float()
        if must_run or before is None:
            self._error = 0.0
            return False
        change = (self._before - before).abs().mean() / before.abs().mean()
        self._error += _polynomial(self._coefficients, change.item())
        if self._error < self._threshold:
            return True
        self._error = 0.0
        return False


def _polynomial(coefficients: Sequence[float], x: float) -> float:
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


Steps = tuple[int, ...]
"""Denoising steps of a chunk, from 0, rising."""


@dataclass(frozen=True)
class SkipSet:
    """Steps that are left out together, and what that does to a chunk.

    An error is the mean squared change of the chunk's latents over their variance.
    """

    steps: Steps
    first: tuple[float, ...]
    """Error of every video's first chunk; empty if that has steps of its own."""
    later: tuple[tuple[float, ...], ...]
    """Errors of every video's later chunks."""

    @property
    def error(self) -> float:
        """Mean over all later chunks of all videos."""
        return fmean(error for video in self.later for error in video)

    @property
    def spread(self) -> float:
        """Standard deviation over videos."""
        return stdev(map(fmean, self.later)) if len(self.later) > 1 else 0.0


@dataclass(frozen=True)
class Calibration:
    """A TeaCache table: the measured errors of leaving out denoising steps, and the one that is accepted.

    It holds for later chunks. The first one has no past to go by: its steps differ more, and all of them run.
    """

    model: str
    """Name of its preset."""
    fingerprint: str
    """See `model.fingerprint`."""
    schedule: ScheduleArgs
    """Of the chunks that steps are left out of."""
    policy: str
    """Which past frames the heads saw."""
    frames: int
    """Pixel frames per video."""
    size: tuple[int, int]
    """Height and width in pixels."""
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    """Of the videos of each prompt."""
    error: float
    """The highest error that is accepted."""
    sets: tuple[SkipSet, ...]

    def __post_init__(self) -> None:
        if not self.error > 0:
            raise BadRequest(
                f"An error of {self.error:g} cannot be kept to", "take more than 0, such as 0.01", "error"
            )

    @property
    def steps(self) -> Steps:
        """The steps to leave out: as many as the error allows, of these the ones with the least error."""
        fitting = [found for found in self.sets if found.error <= self.error]
        best = min(fitting, key=lambda found: (-len(found.steps), found.error), default=None)
        return best.steps if best else ()

    def at(self, error: float) -> "Calibration":
        """The same measurements with another error that is accepted.

        Raises:
            BadRequest: If it is not above 0.
        """
        return replace(self, error=error)

    def speed_up(self, steps: Steps) -> float:
        """Ratio of passes of a later chunk with and without all steps, the commit pass included."""
        passes = len(self.schedule.steps) + 1
        return passes / (passes - len(steps))

    def require(self, preset: Preset, strength: float = 1.0) -> None:
        """Refuse other denoising steps than those that were measured.

        Args:
            preset: Of the model.
            strength: Of a video that is made from another one; below 1, the steps begin with less noise.

        Raises:
            BadRequest: If these are other ones.
        """
        if self.schedule != preset.schedule:
            mine, theirs = (
                f"{' '.join(f'{step:g}' for step in args.steps)} with shift {args.shift:g}"
                for args in (self.schedule, preset.schedule)
            )
            raise BadRequest(
                f"This TeaCache table was measured with noise levels {mine}, but model '{preset.name}' has "
                f"{theirs}",
                "make one with calibrate()",
                "teacache",
            )
        if strength != 1:
            raise BadRequest(
                "A TeaCache table holds for chunks that begin with noise alone, not for a video that is made "
                "from another",
                "give a TeaCache threshold such as 0.2",
                "teacache",
            )

    def require_weights(self, found: str) -> None:
        """Refuse other weights than those that were measured.

        Args:
            found: Fingerprint of the model.

        Raises:
            BadRequest: If it is another one.
        """
        if self.fingerprint != found:
            raise BadRequest(
                f"This TeaCache table was measured with model {self.fingerprint}, but this model is {found}",
                "make one with calibrate()",
                "teacache",
            )

    def save(self, path: str | Path) -> None:
        """Write the table as JSON that a person can read; the file appears whole or not at all.

        Raises:
            BadFile: If it cannot be written.
        """
        with replacing(Path(path)) as part:
            part.write_text(as_text({"format": FORMAT, **asdict(self)}), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read a table that `save` wrote.

        Raises:
            BadFile: If there is no readable table.
        """
        try:
            fields = read_json(path)
        except OSError as error:
            raise BadFile(
                f"The TeaCache table {path} cannot be read ({error.strerror})", "give another file"
            ) from error
        except ValueError as error:
            raise BadFile(
                f"{path} is not a TeaCache table ({error})", "give one that calibrate() made"
            ) from error
        if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
            raise BadFile(f"{path} is not a TeaCache table", "give one that calibrate() made")
        table = build(cls, fields, str(path))
        count = len(table.schedule.steps)
        for found in table.sets:
            if not all(0 < step < count for step in found.steps) or not any(found.later):
                raise BadFile(
                    f"{path} is damaged, steps {list(found.steps)} of {count} have no errors",
                    "measure it again",
                )
        return table
