import math
from fractions import Fraction

import pytest
import torch

from layercollapse import LayerCollapseError, ops
from layercollapse._util.ranks import Ranks
from layercollapse.prune.magnitudes import magnitudes
from layercollapse.prune.shards import CHUNK, Held, Part


def held(weight, mask=None):
    shape = tuple(weight.shape)
    mask = torch.ones(shape, dtype=torch.bool) if mask is None else mask
    return Held("w", weight, ops.pack_mask(mask), Part(shape, (0,) * len(shape), shape))


def of(weight, mask=None):
    return magnitudes([held(weight, mask)], Ranks())["w"]


def test_numbers_by_hand():
    weight = torch.tensor([[1.0, -2.0, 4.0], [0.5, -8.0, 0.0]])
    assert of(weight) == 15.5
    assert of(weight, torch.tensor([[True, True, False], [True, False, True]])) == 3.5
    assert of(torch.zeros(3)) == 0
    assert of(torch.zeros(0, 4)) == 0
    assert magnitudes([], Ranks()) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-4, 2.0**12])
def test_sums_are_close_and_do_not_depend_on_the_order(dtype, scale):
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(1009, generator=generator).double() * scale).to(dtype)
    exact = sum(abs(Fraction(x)) for x in weight.tolist())
    assert of(weight) == pytest.approx(float(exact), rel=1e-14)
    orders = {of(weight[torch.randperm(1009, generator=generator)]) for _ in range(20)}
    assert orders == {of(weight)}


@pytest.mark.parametrize("largest", [5e-324, 1e-300, 1.0, 1.7e308])
def test_doubles_of_any_size(largest):
    assert of(torch.tensor([largest, -largest], dtype=torch.float64)[:1]) == largest
    assert of(torch.full((5,), largest / 8, dtype=torch.float64)) == pytest.approx(5 * (largest / 8), abs=math.ulp(0.0))


def test_more_entries_than_are_summed_at_a_time():
    assert of(torch.ones(CHUNK + 3)) == CHUNK + 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_an_error_also_where_it_is_pruned(bad):
    weight = torch.tensor([1.0, bad])
    for mask in (None, torch.tensor([True, False])):
        with pytest.raises(LayerCollapseError, match="expected finite numbers, got NaN or infinity in w"):
            of(weight, mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_stay_as_they_are(dtype):
    weight = torch.tensor([1.0, -2.0, 3.0], dtype=dtype)
    of(weight, torch.tensor([True, False, True]))
    assert weight.tolist() == [1.0, -2.0, 3.0]
