"""The scheduler in simulated hours: who stalls, who starves."""

import math
from dataclasses import dataclass, field

import pytest

from dummyforcing.server.scheduler import JOBS_SHARE, Scheduler, Turn

CHUNK = 0.75  # seconds of video


@dataclass
class Viewer:
    """Watches one or several videos in real time, as soon as the first chunk of each is there."""

    name: str
    cost: float
    """Seconds of the device for a chunk."""
    videos: int = 1
    ahead: int = 3
    since: float = 0.0
    turns: list[Turn] = field(default_factory=list)
    made: list[float] = field(default_factory=list)
    began: list[float | None] = field(default_factory=list)
    stalled: float = 0.0

    def __post_init__(self) -> None:
        self.turns = [Turn(self.name, is_live=True) for _ in range(self.videos)]
        self.made = [0.0] * self.videos
        self.began = [None] * self.videos

    def look(self, now: float) -> None:
        for number, turn in enumerate(self.turns):
            began = self.began[number]
            due = self.since if began is None else began + self.made[number]
            has_enough = began is not None and due - now > (self.ahead - 1) * CHUNK
            turn.due = None if now < self.since or has_enough else due

    def got(self, turn: Turn, now: float) -> None:
        number = self.turns.index(turn)
        began = self.began[number]
        late = 0.0 if began is None else max(now - began - self.made[number], 0.0)
        self.stalled += late
        self.began[number] = now if began is None else began + late
        self.made[number] += CHUNK


def simulate(seconds: float, viewers: list[Viewer], job_cost: float = 0.0) -> float:
    """Let time pass; returns the seconds that a job got."""
    scheduler, now, worked = Scheduler(), 0.0, 0.0
    job = Turn("job", is_live=False, due=math.inf if job_cost else None)
    while now < seconds:
        for viewer in viewers:
            viewer.look(now)
        turn = scheduler.next([job, *(turn for viewer in viewers for turn in viewer.turns)], now)
        if turn is None:
            now += 0.01
            continue
        owner = next((viewer for viewer in viewers if turn in viewer.turns), None)
        cost = owner.cost if owner else job_cost
        now += cost
        scheduler.used(turn, cost, now)
        if owner:
            owner.got(turn, now)
        else:
            worked += cost
    return worked


@pytest.mark.parametrize("costs", [[0.6], [0.3, 0.3], [0.2, 0.2, 0.2], [0.1] * 6, [0.4, 0.1, 0.1]])
def test_nobody_stalls_where_there_is_time_for_all(costs: list[float]) -> None:
    viewers = [Viewer(f"v{number}", cost) for number, cost in enumerate(costs)]
    simulate(600, viewers)
    assert [viewer.stalled for viewer in viewers] == [0] * len(viewers)


def test_who_asks_for_too_much_slows_himself_down_alone() -> None:
    greedy = Viewer("greedy", 0.5, videos=3)  # twice what the device gives
    others = [Viewer("a", 0.15), Viewer("b", 0.15)]
    simulate(600, [greedy, *others])
    assert max(other.stalled for other in others) < 1
    assert greedy.stalled > 60


def test_jobs_take_what_is_left() -> None:
    viewers = [Viewer("a", 0.25), Viewer("b", 0.2)]  # 60% of the device
    worked = simulate(600, viewers, job_cost=0.2)
    assert max(viewer.stalled for viewer in viewers) == 0
    assert worked > 0.35 * 600


def test_jobs_do_not_starve() -> None:
    viewers = [Viewer(f"v{number}", 0.4) for number in range(4)]  # twice the device
    worked = simulate(600, viewers, job_cost=0.2)
    assert worked > 0.8 * JOBS_SHARE * 600


def test_live_videos_come_first_when_both_are_short() -> None:
    scheduler = Scheduler()
    job, live = Turn("job", is_live=False, due=math.inf), Turn("a", is_live=True, due=12.0)
    scheduler.used(job, 5, 10)  # it had its share
    assert scheduler.next([job, live], 10) is live
    live.due = None
    assert scheduler.next([job, live], 10) is job
    job.due = None
    assert scheduler.next([job, live], 10) is None


def test_the_one_who_would_stall_first_is_next() -> None:
    turns = [Turn(name, is_live=True, due=due) for name, due in (("a", 0.5), ("b", 0.1), ("c", 1.0))]
    assert Scheduler().next(turns, 0.0) is turns[1]


def test_a_newcomer_is_not_kept_waiting_by_those_who_have_enough() -> None:
    early = [Viewer("a", 0.3), Viewer("b", 0.3)]
    late = Viewer("late", 0.1, since=100)
    simulate(101, [*early, late])
    assert late.began[0] is not None
    assert late.began[0] - 100 < 0.8


def test_where_there_is_too_little_time_for_all_nobody_is_left_out() -> None:
    viewers = [Viewer(f"v{number}", 0.25, since=0.2 * number) for number in range(4)]  # a third too much
    simulate(60, viewers)
    assert all(viewer.began[0] is not None for viewer in viewers)
    made = [viewer.made[0] for viewer in viewers]
    assert max(made) - min(made) <= 3 * CHUNK


def test_three_are_kept_at_93_percent_of_the_device() -> None:
    viewers = [Viewer(f"v{number}", 0.2317, since=0.2 * number, ahead=2) for number in range(3)]
    simulate(600, viewers)
    assert sum(viewer.stalled for viewer in viewers) < 1
