"""What was made of a live session, on the disk, to be sent again and downloaded."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dummyforcing.server.live.messages import Chunk


@dataclass(frozen=True)
class Entry:
    """A chunk of a recording."""

    chunk: Chunk
    offset: int
    size: int


class Archive:
    """The segments of all tracks of a session, one after the other in a file that has no name.

    It goes when the session does, and when the process dies.
    """

    def __init__(self, folder: Path) -> None:
        """Open it.

        Args:
            folder: Where there is room.
        """
        self._file: BinaryIO = tempfile.TemporaryFile(dir=folder, prefix="live-")  # noqa: SIM115
        self._end = 0

    def append(self, segment: bytes) -> int:
        """Write a segment, and tell where it is.

        Raises:
            OSError: If the disk is full.
        """
        offset, written = self._end, 0
        while written < len(segment):  # not by the file's position: others read meanwhile
            written += os.pwrite(self._file.fileno(), segment[written:], offset + written)
        self._end += len(segment)
        return offset

    def read(self, entry: Entry) -> bytes:
        """The segment of a chunk."""
        return os.pread(self._file.fileno(), entry.size, entry.offset)

    def close(self) -> None:
        """Give the disk's space back."""
        self._file.close()


class Recording:
    """The chunks of a track, those of its ancestors included."""

    def __init__(self, archive: Archive, entries: Sequence[Entry] = ()) -> None:
        """Begin with the chunks that are there."""
        self.archive = archive
        self.entries = list(entries)

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, chunk: Chunk, segment: bytes) -> None:
        """Take a chunk; those at its place and after it are given up.

        Raises:
            OSError: If the disk is full.
        """
        offset = self.archive.append(segment)
        self.truncate(chunk.index)
        self.entries.append(Entry(chunk, offset, len(segment)))

    def truncate(self, count: int) -> None:
        """Give up all chunks but the first ones."""
        del self.entries[count:]

    def fork(self, count: int) -> "Recording":
        """Another one that begins with the first chunks of this one."""
        return Recording(self.archive, self.entries[:count])

    def scenes(self) -> list[tuple[int, str]]:
        """The chunk that each prompt begins with, and the prompt."""
        found: list[tuple[int, str]] = []
        for entry in self.entries:
            if not found or found[-1][1] != entry.chunk.prompt:
                found.append((entry.chunk.index, entry.chunk.prompt))
        return found
