"""Races between the forms of one network, with a cost model that is given; and what a form says of itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from layercollapse.compiler.passes.context import Group, PassContext
from layercollapse.compiler.passes.registry import run_passes
from layercollapse.compiler.tuning.timer import MARGIN, ordered
from layercollapse.compiler.tuning.variants import COMPARED, MERGES, Form, Race, Variant, cheaper, form, race
from networks import lowered

ALL, CHOSEN, INPUT = Variant.ALL, Variant.CHOSEN, Variant.INPUT


class Given:
    """A cost model that reads its times from a list, one dict for a race."""

    def __init__(self, *races: dict[Variant, float]) -> None:
        self.races, self.asked = list(races), []

    def networks(self, models, example_inputs, *, seconds, passes):
        self.asked.append((tuple(models), seconds, passes))
        return {name: self.races[len(self.asked) - 1][name] for name in models}


def named(*names: Variant) -> list[Form]:
    return [Form(name, nn.Identity(), 1, {}, {}, (), {}) for name in names]


def raced(cost: Given, *names: Variant) -> Race:
    """The race of some forms against the input, the first of which keeps its place."""
    return race(dict.fromkeys((INPUT, *names), nn.Identity()), None, cost, names[0], 1.0)


def test_without_the_input_nothing_is_slower() -> None:
    alone = race(dict.fromkeys((ALL, CHOSEN), nn.Identity()), None, Given({ALL: 9.0, CHOSEN: 9.0}), ALL, 0.5)
    assert (alone.order, alone.slower_than_input(ALL)) == ((ALL, CHOSEN), False)


def test_the_first_wins_at_once_within_the_margin() -> None:
    cost = Given({INPUT: 1.0, ALL: 1.0, CHOSEN: 1.0 - MARGIN / 2})
    result = raced(cost, ALL, CHOSEN)
    assert result.order[0] == ALL
    assert cost.asked == [((INPUT, ALL, CHOSEN), 1.0, 50)]


def test_another_has_to_win_twice() -> None:
    first = {INPUT: 1.0, ALL: 0.9, CHOSEN: 0.5}
    for second, winner in ((0.5, CHOSEN), (0.9, ALL)):
        cost = Given(first, {INPUT: 1.0, ALL: 0.9, CHOSEN: second})
        result = raced(cost, ALL, CHOSEN)
        assert result.order[0] == winner
        assert cost.asked[1] == ((INPUT, CHOSEN, ALL), 3.0, 150)
        assert result.times[CHOSEN] == second


def test_only_those_ahead_of_the_first_race_again() -> None:
    times = {INPUT: 1.0, ALL: 0.9, CHOSEN: 0.5, Variant.UNCHANGED: 2.0}
    cost = Given(times, times)
    result = raced(cost, ALL, CHOSEN, Variant.UNCHANGED)
    assert cost.asked[1][0] == (INPUT, CHOSEN, ALL)
    assert result.times[Variant.UNCHANGED] == 2.0
    assert result.order == (CHOSEN, ALL)


def test_what_seems_slower_than_the_input_is_measured_longer() -> None:
    cost = Given({INPUT: 1.0, ALL: 1.5}, {INPUT: 1.0, ALL: 0.9})
    result = raced(cost, ALL)
    assert not result.slower_than_input(ALL)
    slow = raced(Given({INPUT: 1.0, ALL: 1.5}, {INPUT: 1.0, ALL: 1.04}), ALL)
    assert slow.slower_than_input(ALL)
    assert not raced(Given({INPUT: 1.0, ALL: 1.02}), ALL).slower_than_input(ALL)


@pytest.mark.parametrize(
    ("times", "order"),
    [
        ({"a": 1.0, "b": 0.98, "c": 0.5}, ("c", "a", "b")),  # b is within the margin of the first
        ({"a": 1.0, "b": 0.96, "c": 2.0}, ("b", "a", "c")),
    ],
)
def test_the_order_favours_the_first_by_the_margin(times: dict[str, float], order: tuple[str, ...]) -> None:
    assert ordered(times, times, "a") == order


def test_a_form_says_what_is_left() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 2), nn.Linear(2, 9)), torch.randn(5, 6)
    net, context = lowered(model, x), PassContext()
    run_passes(net, context)
    made = form(ALL, net, context, torch.device("cpu"), {})
    assert (made.name, made.depth, made.bending, made.repadded) == (ALL, 3, {"1": 9}, ())
    assert list(made.kept) == [("2", "3")]  # one of 9 × 9 is more work
    assert made.calls == {"0.weight": 1, "2.weight": 1, "3.weight": 1}
    torch.testing.assert_close(made.model(x), model(x))
    unchanged = form(Variant.UNCHANGED, lowered(model, x), PassContext(), torch.device("cpu"), {})
    assert unchanged.kept == {}


def test_every_group_is_left_out_by_some_variant() -> None:
    assert set().union(*(groups for some in COMPARED for groups in some.values())) == set(Group)
    assert COMPARED[0][Variant.UNMERGED] == MERGES
    assert str(Variant.ALL) == "every pass applied" == f"{Variant.ALL}"


def test_a_form_is_cheaper_by_more_than_the_margin_or_by_less_work() -> None:
    one, other = named(ALL, CHOSEN)
    for ours, expected in ((0.9, True), (1.0 - MARGIN / 2, False), (1.1, False)):
        cost = Given({True: ours, False: 1.0})  # type: ignore[dict-item]
        assert cheaper(one, other, None, cost) is expected
    less, more = (replace(one, model=nn.Linear(4, n)) for n in (2, 3))
    x = torch.zeros(1, 4)
    assert cheaper(less, more, x, None)
    assert not cheaper(more, less, x, None)
    assert not cheaper(less, less, x, None)
