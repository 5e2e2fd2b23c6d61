"""The simulated viewers against numerical integration, conservation of time and the theory of queues."""

import math
from itertools import pairwise

import pytest

from dummyforcing.client.viewers import SLOWEST, THIN
from research.benchmarks.viewers import LONG, Server, crowd, play, played, together
from research.pages.viewers import most_below

H200 = Server(chunk=0.228, shown=0.75, ahead=2)


@pytest.mark.parametrize("lead", [0.1, 0.75, 0.8, 2.0])
@pytest.mark.parametrize("seconds", [0.05, 0.6, 1.4])
def test_the_player_slows_down_as_the_page_does(lead, seconds):
    """By small steps, with the speed of `server/page/player.js`."""
    left, step = lead, 1e-5
    for _ in range(round(seconds / step)):
        left -= step * min(1.0, SLOWEST + (1 - SLOWEST) * left / THIN)
        if left <= 0:
            left = 0.0
            break
    assert played(lead, seconds) == pytest.approx(lead - left, abs=1e-4)
    if left:
        assert play(lead, played(lead, seconds)) == pytest.approx(seconds)


@pytest.mark.parametrize(("chunk", "viewers"), [(0.228, 4), (0.228, 6), (0.661, 2)])
def test_what_the_device_cannot_make_is_missing(chunk, viewers):
    """It makes 0.75 s of video in each `chunk` seconds, which all viewers share."""
    found = together(Server(chunk, 0.75, 2), viewers, 2000)
    assert found["late"] == pytest.approx(1 - 0.75 / chunk / viewers, abs=0.01)
    assert found["stalled"] <= found["late"]


def test_nobody_stalls_where_there_is_time():
    for viewers in (1, 2, 3):
        found = together(H200, viewers, 300)
        assert found["stalled"] == 0
        assert found["late"] < 0.002


@pytest.mark.parametrize("gpus", [1, 2])
def test_who_waits_is_told_by_erlang(gpus):
    """With a place for three on each GPU, they are an M/M/c queue, whose waiting times are known."""
    assert H200.most == 3
    places, load, stays = 3 * gpus, 2.0 * gpus, 60.0
    found = crowd(H200, gpus, load, stays=stays, seconds=40_000, admits=True, seed=1)
    last = load**places / math.factorial(places) * places / (places - load)
    waits = last / (sum(load**k / math.factorial(k) for k in range(places)) + last)
    expected = waits * math.exp(-(places - load) / stays * LONG)
    assert found["counted"] > 1000
    assert found["waited"] == pytest.approx(expected, abs=0.05)
    assert found["late"] < 0.002


def test_more_gpus_have_time_for_more_than_as_many_times_the_viewers():
    """Chance is evened out: at the same load of each, eight GPUs are late more seldom than one."""
    shares = [
        crowd(H200, gpus, 2.3 * gpus, stays=300, seconds=24_000 / gpus, admits=False, seed=3)["late"]
        for gpus in (1, 2, 8)
    ]
    assert all(more < less for less, more in pairwise(shares))


def test_most_below():
    rows = [{"viewers": 1, "late": 0.0}, {"viewers": 2, "late": 0.02}, {"viewers": 3, "late": 0.0}]
    assert most_below(rows, "late", 0.01) == 1
    assert most_below(rows, "late", 0.5) == 3
    assert most_below(rows[1:], "late", 0.01) == 0
