"""Which positions of the data a fit is made of, which it is tried on, and what is chosen."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from layercollapse.compiler.driver.fitting import Fitting
from layercollapse.compiler.ir.graph import shape
from layercollapse.compiler.passes.refit import linear_regions
from layercollapse.compiler.tuning.candidates import Choices, choices
from networks import lowered


def fitting(size: int = 6) -> Fitting:
    """The fitting of two convolutions that are one, but for 1e-9: the candidates are 1x1, 3x3 and 5x5."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1), nn.ReLU()).double()
    net = lowered(model, torch.randn(2, 2, size, size).double())
    (region,) = linear_regions(net)
    some = choices(net, region, None, torch.device("cpu"))
    assert isinstance(some, Choices)
    made = Fitting(some)
    made.begin()
    return made


def values(made: Fitting, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    (read,) = made.choices.windows
    return {read.name: x, made.choices.region.root.name: y}


@pytest.mark.parametrize(("samples", "batch", "held"), [(10, 0, 2), (5, 3, 1), (4, 3, 0), (4, 4, 4), (1, 9, 1)])
def test_the_last_samples_of_a_batch_are_held_out_or_one_small_batch_in_five(samples, batch, held) -> None:
    made = fitting()
    x, y = torch.randn(samples, 2, 6, 6).double(), torch.randn(samples, 3, 6, 6).double()
    y[samples - held :] = 7.0
    made.add(values(made, x, y), batch, 1)
    assert (made.fitted.samples, made.held.samples) == ((samples - held) * 36, held * 36)
    if held:
        assert made.held.explained(made.held.fit()) == pytest.approx(1.0)  # these, and no others
        assert bool((made.held.fit().bias - 7.0).abs().max() < 1e-4)


def test_large_batches_give_a_share_of_what_a_fit_needs_that_depends_on_nothing_else() -> None:
    made, again = fitting(16), fitting(16)
    x, y = torch.randn(40, 2, 16, 16).double(), torch.randn(40, 3, 16, 16).double()
    for one, seed in ((made, 1), (again, 2)):
        torch.manual_seed(seed)
        one.add(values(one, x, y), 0, 3)
    most = math.ceil(16 * 2 * 25 / 3)
    assert made.fitted.samples + made.held.samples == most < 40 * 256
    assert 0 < made.held.samples < most / 3
    assert torch.equal(made.fitted.fit().weight, again.fitted.fit().weight)


def test_the_layers_are_those_of_the_convolution_that_made_the_data() -> None:
    made = fitting(8)
    layer = nn.Conv2d(2, 3, 3, padding=1).double()
    with torch.no_grad():
        x = torch.randn(30, 2, 8, 8).double()
        made.add(values(made, x, layer(x)), 0, 1)
    candidate, r2, replacement = made.chosen(0.999)
    assert str(candidate) == "one 3x3 convolution"
    assert r2 == pytest.approx(1.0, abs=1e-9)
    ((read, op),) = replacement.layers
    assert replacement.last is None
    assert (shape(read)[1], op.geometry.kernel, op.geometry.padding) == (2, (3, 3), (1, 1))
    torch.testing.assert_close(op.weight, layer.weight.data, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(op.bias, layer.bias.data, rtol=1e-6, atol=1e-6)


def test_a_lower_rank_is_two_layers() -> None:
    made = fitting(8)
    with torch.no_grad():
        layer = nn.Sequential(nn.Conv2d(2, 1, 3, padding=1), nn.Conv2d(1, 3, 1)).double()
        x = torch.randn(30, 2, 8, 8).double()
        y = layer(x)
        made.add(values(made, x, y), 0, 1)
        candidate, _, replacement = made.chosen(0.999)
        assert str(candidate) == "one 3x3 convolution of rank 1"
        ((_, op),) = replacement.layers
        assert replacement.last is not None
        fitted = nn.functional.conv2d(x, op.weight, op.bias, padding=1)
        fitted = nn.functional.conv2d(fitted, replacement.last.weight, replacement.last.bias)
    torch.testing.assert_close(fitted, y, rtol=1e-6, atol=1e-6)


def test_nothing_good_enough_and_nothing_finite_say_so() -> None:
    made = fitting(8)
    x, y = torch.randn(30, 2, 8, 8).double(), torch.randn(30, 3, 8, 8).double()
    made.add(values(made, x, y), 0, 1)
    assert "of its variance (R²), less than 0.5" in made.chosen(0.5)
    made = fitting(8)
    y[0] = torch.inf
    made.add(values(made, x, y), 0, 1)
    assert made.chosen(0.5) == "the data make values there that are not finite"
