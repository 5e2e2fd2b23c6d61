"""Pixel frames to files: H.264 mp4 that browsers play.

```python
with VideoWriter("ball.mp4", fps=16) as writer:
    for frames in chunks:  # uint8 (n, H, W, 3)
        writer.write(frames)
```
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import av
from av.container import OutputContainer

from dummyforcing.errors import BadFile
from dummyforcing.files.writing import explaining, temporary
from dummyforcing.media.frames import Frames
from dummyforcing.media.h264 import Encoder


class VideoWriter:
    """An mp4 that is written frame by frame: H.264, yuv420p, tagged BT.709, index before the data.

    The file has a temporary name in its folder until it is complete. If the block ends with Ctrl-C, the
    frames so far, if there are any, become a playable file: under the final name, or as `NAME.part.mp4`
    beside an older file, which stays. The `KeyboardInterrupt` goes on, with a note that says so. If the block
    ends with another error, nothing is left and an older file stays.
    """

    def __init__(self, path: str | Path, fps: int = 16, *, keep_part: bool = True) -> None:
        """Describe the file; nothing is touched before the block begins.

        Args:
            path: The final name; must end in `.mp4`.
            fps: Pixel frames per second.
            keep_part: Whether to keep frames of a video that Ctrl-C ended.

        Raises:
            BadFile: If the name does not end in `.mp4`.
        """
        self.path, self.fps, self._keep_part = Path(path), fps, keep_part
        if self.path.suffix.lower() != ".mp4":
            raise BadFile(f"cannot write {path}: videos are mp4 files", "give a name that ends in .mp4")
        self.frames = 0
        """Pixel frames written so far."""
        self._between_frames = True
        self._encoder: Encoder | None = None

    def __enter__(self) -> "VideoWriter":
        self._part = temporary(self.path)
        self._container: OutputContainer = av.open(
            str(self._part), "w", format="mp4", options={"movflags": "+faststart"}
        )
        return self

    def write(self, frames: Frames) -> None:
        """Append frames.

        Args:
            frames: uint8 RGB, `(n, H, W, 3)` or one frame `(H, W, 3)`; H and W even, the same in every call.

        Raises:
            BadFile: If the file cannot be written, for example because the disk is full.
            ValueError: If the frames are not of that kind.
        """
        for pixels in frames if frames.ndim == 4 else frames[None]:
            height, width = pixels.shape[:2]
            self._between_frames = False
            if self._encoder is None:
                self._encoder = Encoder(self._container, width, height, self.fps, {"crf": "18"})
            encoder = self._encoder
            if (encoder.width, encoder.height) != (width, height):
                raise ValueError(f"frame of {width}x{height} in a video of {encoder.width}x{encoder.height}")
            with explaining(self.path):
                self._container.mux(encoder.encode(pixels, self.frames))
            self.frames += 1
            self._between_frames = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An interrupt inside of a frame may have lost a packet on which later ones depend: keep nothing then.
        interrupted = self._keep_part and isinstance(error, KeyboardInterrupt) and self._between_frames
        try:
            if self._encoder and error is None:
                self._finish(self.path)
            elif self._encoder and error and interrupted:
                older = self.path.exists()
                kept = self.path.with_suffix(".part.mp4") if older else self.path
                self._finish(kept)
                stays = f"; {self.path} is as it was" if older else ""
                error.add_note(
                    f"The first {self.frames} frames ({self.frames / self.fps:.1f} s) are in {kept}{stays}."
                )
            elif error is None:
                raise BadFile(f"cannot write {self.path}, there are no pixel frames", "write some first")
        finally:
            with suppress(av.FFmpegError):  # closing writes, too: on a full disk it fails like the rest
                self._container.close()
            self._part.unlink(missing_ok=True)

    def _finish(self, path: Path) -> None:
        """Complete the file, and give it its name."""
        assert self._encoder is not None
        with explaining(path):
            self._container.mux(self._encoder.rest())
            self._container.close()
            self._part.replace(path)


def write_mp4(path: str | Path, frames: Iterable[Frames], fps: int = 16) -> None:
    """Write a whole video, or nothing.

    Args:
        path: Must end in `.mp4`.
        frames: uint8 RGB frames `(H, W, 3)`, or pieces `(n, H, W, 3)`, as they come; an array `(n, H, W, 3)`
            is fine.
        fps: Pixel frames per second.

    Raises:
        BadFile: If there are no frames or the file cannot be written; nothing is left then.
    """
    with VideoWriter(path, fps, keep_part=False) as writer:
        for piece in frames:
            writer.write(piece)
