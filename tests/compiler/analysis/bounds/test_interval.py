"""Intervals by hand: their ends along dimensions, and moved outward by what rounding may do."""

from __future__ import annotations

import math

import pytest
import torch

from layercollapse.compiler.analysis.bounds.interval import Interval, channelwise, rounded, roundoff, total, unknown


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def lists(interval: Interval) -> tuple[list, list]:
    return interval.low.tolist(), interval.high.tolist()


GRID = Interval(tensor([[[-1.0, 2.0], [0.0, -3.0]]]), tensor([[[1.0, 4.0], [5.0, 3.0]]]))  # (1, 2, 2)


def test_dimensions_and_channels() -> None:
    assert GRID.dims == [1, 2]
    assert lists(GRID.along(1, 2)) == ([-1.0, -3.0], [4.0, 5.0])
    assert lists(GRID.along(-1, 2)) == ([-1.0, -3.0], [5.0, 4.0])
    assert lists(GRID.without([-1])) == ([[[-1.0], [-3.0]]], [[[4.0], [5.0]]])
    assert lists(GRID.without([])) == lists(GRID)
    assert lists(GRID.whole(2)) == ([[-3.0]], [[5.0]])
    assert lists(GRID.including(4.5)) == (GRID.low.tolist(), [[[4.5, 4.5], [5.0, 4.5]]])
    one = Interval(tensor([[-1.0]]), tensor([[2.0]]))
    assert lists(one.along(1, 3)) == ([-1.0] * 3, [2.0] * 3)  # one for all channels
    assert lists(channelwise(tensor([1.0, 2.0]), tensor([3.0, 4.0]), -1, 3)) == ([[[1.0, 2.0]]], [[[3.0, 4.0]]])
    assert lists(unknown(2)) == ([-math.inf] * 2, [math.inf] * 2)


@pytest.mark.parametrize(
    ("dtype", "unit", "once"),
    [
        (torch.float64, 2.0**-53, 2.0**-53),
        (torch.float32, 2.0**-24, 2.0**-24),
        (torch.bfloat16, 2.0**-24, 2.0**-8),  # adds in float32, and rounds once
        (torch.float16, 2.0**-24, 2.0**-11),
    ],
)
def test_the_factor_of_rounding(dtype: torch.dtype, unit: float, once: float) -> None:
    assert roundoff(10, dtype) == pytest.approx(10 * unit / (1 - 10 * unit) + once, rel=1e-15)


def test_each_end_moves_outward_by_its_own_terms() -> None:
    gamma = roundoff(2, torch.float32)
    low, high = tensor([[1.0], [-3.0]]), tensor([[2.0], [5.0]])
    assert lists(rounded(low, high, torch.float32)) == ([-2.0 - 4 * gamma], [7.0 + 7 * gamma])


def test_a_sum_in_float32_stays_inside_in_any_order() -> None:
    generator = torch.Generator().manual_seed(0)
    terms = torch.randn(200, 50, generator=generator)
    bounds = rounded(terms.double(), terms.double(), torch.float32, count=200)
    for order in (torch.arange(200), torch.arange(199, -1, -1), torch.randperm(200, generator=generator)):
        made = torch.zeros(50)
        for term in terms[order]:
            made = made + term
        assert bool(((bounds.low <= made.double()) & (made.double() <= bounds.high)).all())


def test_one_value_is_added_to_many_positions() -> None:
    gamma = roundoff(2, torch.float64)
    one = Interval(tensor([[-1.0]]), tensor([[1.0]]))
    many = Interval(tensor([[2.0, -4.0]]), tensor([[3.0, 4.0]]))
    low, high = lists(total(one, many, torch.float64))
    assert low[0] == [1.0 - 3 * gamma, -5.0 - 5 * gamma]
    assert high[0] == [4.0 + 4 * gamma, 5.0 + 5 * gamma]
