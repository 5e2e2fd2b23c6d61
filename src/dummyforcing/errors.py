"""The tree of errors that users can mend. Each says in one sentence what is wrong and what would work.

```text
UserError               the base: catch it to catch all of them (it is a ValueError, too)
├── BadRequest          what was asked for is out of range, or does not go together
├── BadFile             a file is missing, damaged, of another kind, or cannot be written
├── NotEnoughMemory     a video, or a model, does not fit into the memory
├── NotFinite           what was computed holds NaN (not a number) or infinite numbers
├── NoSuchDevice        there is no such device here, or it lacks what was asked for
└── RankFailed          a process of one of several GPUs ended, and the model with it

UserWarning
├── RequestWarning              what was asked for is done, but perhaps not as it was meant
│   ├── TrainedLengthWarning    the video is longer than those that the model was trained for
│   ├── TrainedSizeWarning      its size is far from that which the model was trained for
│   └── UnknownWordsWarning     the prompt has words that the model was never taught
└── PictureWarning              an image or a clip is not quite what is read of it
```
"""

from collections.abc import Sequence


class UserError(ValueError):
    """Something that the caller can mend; its text is the problem, a semicolon and the remedy."""

    def __init__(self, problem: str, remedy: str, option: str | None = None) -> None:
        """Say it.

        Args:
            problem: What is wrong, without a full stop.
            remedy: What would work, in terms of the Python API.
            option: The option or argument that is to blame, by its Python name, if it is a single one; the
                command line names its flag.
        """
        super().__init__(problem, remedy, option)
        self.problem, self.remedy, self.option = problem, remedy, option

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}."


class BadRequest(UserError):
    """A request is out of range, or its parts do not go together."""


class BadFile(UserError):
    """A file is missing, damaged, of another kind, or cannot be written."""


class NotEnoughMemory(UserError):
    """A video, or a model, does not fit into the memory; the remedy is the dearest one that does."""


class NotFinite(UserError):
    """What was computed holds NaN (not a number) or infinite numbers; of files, that is a `BadFile`."""


class NoSuchDevice(UserError):
    """There is no such device here, or it lacks what was asked for."""


class RankFailed(UserError):
    """A process of one of several GPUs ended, and the model with it."""


class RequestWarning(UserWarning):
    """What was asked for is done, but perhaps not as it was meant."""


class TrainedLengthWarning(RequestWarning):
    """The video is longer than those that the model was trained for."""


class TrainedSizeWarning(RequestWarning):
    """The video's size is far from that which the model was trained for."""


class UnknownWordsWarning(RequestWarning):
    """The prompt has words that the model was never taught."""

    def __init__(self, message: str, words: Sequence[str] = ()) -> None:
        """Say so.

        Args:
            message: In words.
            words: Those that are not known.
        """
        super().__init__(message)
        self.words = tuple(words)


class PictureWarning(UserWarning):
    """An image or a clip is not quite what is read of it: it is HDR, interlaced, or has further frames."""
