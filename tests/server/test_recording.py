"""Segments on the disk, written and read at once."""

import threading
from pathlib import Path

from dummyforcing.server.live.messages import Chunk, ChunkMeasures, ChunkTimings
from dummyforcing.server.live.recording import Archive, Entry, Recording


def chunk(index: int, prompt: str = "a ball") -> Chunk:
    timings, measures = ChunkTimings(seconds=1, fps=12), ChunkMeasures(drift=0, repetition=0, motion=0)
    return Chunk(
        track=0,
        number=index + 1,
        index=index,
        first_frame=12 * index,
        frames=12,
        prompt=prompt,
        timings=timings,
        cache_bytes=1,
        dense_bytes=1,
        measures=measures,
        held=[],
    )


def segment(number: int) -> bytes:
    return number.to_bytes(4, "big") * (500 + number % 7)


def test_readers_get_their_segments_while_others_are_written(tmp_path: Path) -> None:
    archive, entries = Archive(tmp_path), []
    for number in range(50):
        data = segment(number)
        entries.append(Entry(chunk(number), archive.append(data), len(data)))
    wrong: list[int] = []
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            for number, entry in enumerate(entries):
                if archive.read(entry) != segment(number):
                    wrong.append(number)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(50, 1500):
        data = segment(number)
        entry = Entry(chunk(number), archive.append(data), len(data))
        if archive.read(entry) != data:
            wrong.append(number)
    is_over.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert list(tmp_path.iterdir()) == []  # it has no name
    archive.close()


def test_a_chunk_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    recording = Recording(Archive(tmp_path))
    for index, prompt in enumerate(["a", "a", "b", "b"]):
        recording.add(chunk(index, prompt), segment(index))
    other = recording.fork(2)
    assert recording.scenes() == [(0, "a"), (2, "b")]
    recording.add(chunk(1, "c"), segment(9))
    other.add(chunk(2, "d"), segment(8))
    assert [entry.chunk.prompt for entry in recording.entries] == ["a", "c"]
    assert [entry.chunk.prompt for entry in other.entries] == ["a", "a", "d"]
    assert recording.archive.read(recording.entries[1]) == segment(9)
    assert recording.archive.read(other.entries[1]) == segment(1)
