"""Races between the forms of one network, with a cost model that is given; and what a form says of itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from layercollapse.compiler.passes.context import Group, PassContext
from layercollapse.compiler.passes.registry import run_passes
from layercollapse.compiler.tuning.timer import MARGIN, ordered
from layercollapse.compiler.tuning.variants import COMPARED, MERGES, Form, Variant, between, cheaper, form
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


def test_the_first_wins_at_once_within_the_margin() -> None:
    cost = Given({INPUT: 1.0, ALL: 1.0, CHOSEN: 1.0 - MARGIN / 2})
    race = between(nn.Identity(), named(ALL, CHOSEN), None, cost)
    assert race.order[0] == ALL
    assert cost.asked == [((INPUT, ALL, CHOSEN), 1.0, 50)]


def test_another_has_to_win_twice() -> None:
    first = {INPUT: 1.0, ALL: 0.9, CHOSEN: 0.5}
    for second, winner in ((0.5, CHOSEN), (0.9, ALL)):
        cost = Given(first, {INPUT: 1.0, ALL: 0.9, CHOSEN: second})
        race = between(nn.Identity(), named(ALL, CHOSEN), None, cost)
        assert race.order[0] == winner
        assert cost.asked[1] == ((INPUT, ALL, CHOSEN), 3.0, 150)
        assert race.times[CHOSEN] == second


def test_only_those_ahead_of_the_first_race_again() -> None:
    times = {INPUT: 1.0, ALL: 0.9, CHOSEN: 0.5, Variant.UNCHANGED: 2.0}
    cost = Given(times, times)
    race = between(nn.Identity(), named(ALL, CHOSEN, Variant.UNCHANGED), None, cost)
    assert cost.asked[1][0] == (INPUT, ALL, CHOSEN)
    assert race.times[Variant.UNCHANGED] == 2.0
    assert race.order == (CHOSEN, ALL)


def test_what_seems_slower_than_the_input_is_measured_longer() -> None:
    cost = Given({INPUT: 1.0, ALL: 1.5}, {INPUT: 1.0, ALL: 0.9})
    race = between(nn.Identity(), named(ALL), None, cost)
    assert not race.slower_than_input(ALL)
    slow = between(nn.Identity(), named(ALL), None, Given({INPUT: 1.0, ALL: 1.5}, {INPUT: 1.0, ALL: 1.04}))
    assert slow.slower_than_input(ALL)
    assert not between(nn.Identity(), named(ALL), None, Given({INPUT: 1.0, ALL: 1.02})).slower_than_input(ALL)


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
