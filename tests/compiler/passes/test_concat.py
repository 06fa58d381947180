"""Layers on both sides of a concatenation."""

from __future__ import annotations

import torch
from torch import nn

import layercollapse as lc
from layercollapse.compiler.backend.modules import ChannelAffine
from networks import agrees_exactly


class Fork(nn.Module):
    """Two layers side by side over the channels, and one behind them."""

    def __init__(self, a: nn.Module, b: nn.Module, c: nn.Module, first: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.a, self.b, self.c = first or nn.Identity(), a, b, c

    def forward(self, x):
        x = self.first(x)
        return self.c(torch.cat([self.a(x), self.b(x)], 1))


def test_layers_side_by_side_in_a_concatenation_are_one() -> None:
    torch.manual_seed(0)
    one = Fork(nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()).double()
    result = agrees_exactly(one, torch.randn(2, 3, 5, 6).double())
    assert [type(m) for m in result.model.modules()][1:] == [nn.Conv2d, nn.ReLU]
    two = Fork(nn.Conv2d(3, 2, 1), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()).double()  # 3×3 for both is more work
    result = agrees_exactly(two, torch.randn(2, 3, 5, 6).double())
    assert result.after.macs == result.before.macs


def test_a_layer_over_a_concatenation_merges_with_its_parts() -> None:
    torch.manual_seed(0)
    model = Fork(nn.Conv2d(3, 8, 3, padding=1), nn.Identity(), nn.Conv2d(11, 2, 1)).double()
    result = agrees_exactly(model, torch.randn(2, 3, 5, 6).double())
    assert [type(m) for m in result.model.modules()][1:] == [nn.Conv2d]  # 3×3, from 3 to 2 channels


def sizes(model: nn.Module) -> list[tuple[int, int]]:
    """Output and input channels of the convolutions."""
    return sorted((m.out_channels, m.in_channels) for m in model.modules() if isinstance(m, nn.Conv2d))


def test_constants_and_unread_channels_of_a_concatenation() -> None:
    torch.manual_seed(0)
    model = Fork(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU()),
        nn.Conv2d(9, 2, 3),
    ).double()
    model.a[0].weight.data[1] = 0  # a constant
    model.c.weight.data[:, 6] = 0  # nothing reads the third of b
    result = agrees_exactly(model, torch.randn(2, 3, 5, 6).double())
    assert sizes(result.model) == [(2, 7), (3, 3), (4, 3)]
    model.c.weight.data[:, :4] = 0  # nothing reads a
    result = agrees_exactly(model, torch.randn(2, 3, 5, 6).double())
    assert sizes(result.model) == [(2, 4), (4, 3)]


def test_scales_on_both_sides_of_a_concatenation() -> None:
    torch.manual_seed(0)
    norms = [nn.BatchNorm1d(n) for n in (4, 4, 8)]
    for norm in norms:
        norm.running_mean.normal_()
        norm.weight.data.normal_()
    before = Fork(norms[0], norms[1], nn.Linear(8, 2), first=nn.ReLU()).double()
    behind = Fork(nn.Linear(3, 4), nn.Linear(3, 4), nn.Sequential(norms[2], nn.ReLU())).double()
    for model, inputs in ((before, 4), (behind, 3)):
        result = agrees_exactly(model, torch.randn(2, inputs).double())
        assert not any(isinstance(m, ChannelAffine) for m in result.model.modules())


def test_rectifiers_behind_a_concatenation_are_bounded() -> None:
    model = Fork(nn.ReLU(), nn.Sigmoid(), nn.Sequential(nn.ReLU(), nn.Linear(8, 2)))
    result = lc.collapse(model, torch.randn(2, 4), None)
    assert [site.status for site in result.sites] == ["kept", "collapsed"]
