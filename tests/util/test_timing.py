"""Who is called when by the timing loop, and which times count; with a clock that is given."""

import pytest
import torch

from layercollapse._util import timing

CPU = torch.device("cpu")


class Clock:
    """A clock that stands still but for what calls take."""

    def __init__(self, monkeypatch):
        self.now, self.order = 0.0, ""
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def call(self, name, *milliseconds):
        times = iter(milliseconds)

        def run():
            self.order += name
            self.now += next(times) / 1e3

        return run


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_turns_go_forwards_and_backwards_and_the_median_counts(clock):
    a, b = clock.call("a", 99, 1, 2, 3, 90), clock.call("b", 99, 10, 20, 30, 900)
    times = timing.in_turns([a, b], CPU, seconds=0.0, warmup=1, minimum=4)
    assert clock.order == "ab" + "abba" * 2
    assert times == pytest.approx([2.5, 25.0])  # of 1, 2, 3, 90 and of 10, 20, 30, 900: the first are not counted


def test_it_ends_when_the_seconds_are_over(clock):
    times = timing.in_turns([clock.call("a", *[100] * 20)], CPU, seconds=0.5, warmup=0, minimum=1)
    assert clock.order == "a" * 6  # two a round; after four of them 0.4 s are over, after six 0.6 s
    assert times == pytest.approx([100])


def test_it_ends_at_the_maximum_before(clock):
    timing.in_turns([clock.call("a", *[1] * 20)], CPU, seconds=9.0, warmup=0, minimum=1, maximum=8)
    assert clock.order == "a" * 8


def test_nothing_to_time():
    assert timing.in_turns([], CPU, seconds=9.0, warmup=1, minimum=4) == []
