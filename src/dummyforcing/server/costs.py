"""What videos take of a device: its memory, and its time for a chunk, by measurement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from dummyforcing.errors import NotEnoughMemory
from dummyforcing.pipeline.memory import estimates
from dummyforcing.pipeline.request import Request
from dummyforcing.server.replicas.facts import Facts


@dataclass(frozen=True)
class Claim:
    """What a video takes of the machine."""

    memory: float
    """Bytes of the device, as long as it lasts."""
    shared: float
    """Bytes while a chunk is made: videos take turns, so those of one suffice for all."""
    load: float
    """Share of the device's time that it takes to be made at the speed at which it is shown."""
    held: int = 0
    """Chunks that it has the memory to go back to."""

    @classmethod
    def of_all(cls, claims: Sequence["Claim"]) -> "Claim":
        """What several take together, of which only the first counts for the device's time.

        Further tracks of a session may slow it down, and nobody else.
        """
        memory, shared = sum(one.memory for one in claims), max(one.shared for one in claims)
        return cls(memory, shared, claims[0].load)


class Costs:
    """What videos of a model take of its device; replicas of it are alike."""

    def __init__(self, facts: Facts) -> None:
        """Know nothing of the time yet.

        Args:
            facts: Of the model.
        """
        self.facts, self.capacity = facts, facts.memory
        # Seconds of the device for a chunk, by size; that of the first video first.
        self._pace: dict[tuple[int, int], float] = {}
        self._fastest: dict[tuple[int, int], float] = {}

    def claim(
        self, request: Request, *, room: float = 0.0, least: int = 0, most: int = 0, is_live: bool = True
    ) -> Claim:
        """What a video would take.

        Args:
            request: It.
            room: Bytes for chunks of it that one can go back to: each has a cache and a decoder of its own.
            least: As many are held in any case.
            most: No more than so many.
            is_live: Whether it is watched while it is made; jobs take the time that is left.

        Raises:
            NotEnoughMemory: If it can never be made here.
        """
        facts, (height, width) = self.facts, request.size
        files, is_gpu = facts.files, facts.device.type != "cpu"
        needs = estimates(files, request, facts.dtype, loaded=True, offload=facts.offload)
        needs = [need.on_gpu() if is_gpu else need for need in needs]
        smallest = min(needs, key=lambda need: need.total)
        stride = files.decoder.stride
        past = files.decoder.memory((1, 0, height // stride, width // stride), facts.dtype.itemsize)
        one = smallest.cache + past.working
        held = min(max(int(room / one), least), most)
        memory, shared = (held + 1) * one, max(smallest.total - one, 0.0)
        if memory + shared > self.capacity:
            raise NotEnoughMemory(
                f"This video needs about {(memory + shared) / 1e9:.1f} GB of memory, and there are "
                f"{self.capacity / 1e9:.1f} GB",
                'take a smaller size, fewer frames or policy="dummy"',
            )
        load = self.pace(request.size) / facts.chunk_seconds if is_live else 0.0
        return Claim(memory, shared, load, held)

    def pace(self, size: tuple[int, int]) -> float:
        """Seconds of the device for a chunk of a size, height and width, by measurement."""
        return self._pace[size] if size in self._pace else _scaled(self._pace, size)

    def fastest(self, size: tuple[int, int]) -> float:
        """The least that `pace` could be: what is refused for its pace is not measured again.

        So an hour in which the machine was busy with something else must not decide.
        """
        return min(self._fastest.get(size, inf), _scaled(self._fastest, size))

    def begin(self, size: tuple[int, int], taken: Sequence[float]) -> None:
        """Take the times of a first video's chunks into account; the newest one counts."""
        self._pace[size], self._fastest[size] = taken[-1], min(taken[1:])

    def learn(self, size: tuple[int, int], seconds: float) -> None:
        """Take a chunk's time into account.

        Not on a GPU: there a chunk is made while the one before it is handed out, so that its own turn takes
        no time unless the device is busy. What the first video took, one chunk after the other, holds.
        """
        if self.facts.device.type == "cuda":
            return
        before = self._pace.get(size, seconds)
        self._pace[size] = 0.8 * before + 0.2 * seconds
        self._fastest[size] = min(self._fastest.get(size, inf), seconds)


def _scaled(known: Mapping[tuple[int, int], float], size: tuple[int, int]) -> float:
    """Seconds for a size by those for the first one that is known, and their pixels; 0: none is known."""
    if not known:
        return 0.0
    first, seconds = next(iter(known.items()))
    return seconds * size[0] * size[1] / (first[0] * first[1])
