"""Channels that are constant or that nothing reads go, also through gates and upsampling."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from networks import Model, agrees_exactly


class Excite(nn.Module):
    """A squeeze and excitation between two convolutions."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.reduce, self.expand, self.gate = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), gate

    def forward(self, x):
        x = self.first(x)
        return self.last(x * self.gate(self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True))))))


@pytest.mark.parametrize("gate", [nn.Sigmoid(), nn.Hardsigmoid(), nn.Tanh(), nn.Softplus()])
@pytest.mark.parametrize("dead", ["reduce", "expand"])
def test_a_gate_that_reads_nothing_is_a_scale(gate: nn.Module, dead: str) -> None:
    torch.manual_seed(0)
    model = Excite(gate).double()
    nn.init.zeros_(model.get_submodule(dead).weight)
    result = agrees_exactly(model, torch.randn(2, 3, 6, 5).double())
    assert [type(m) for m in result.model.modules()][1:] == [nn.Conv2d]
    one = torch.randn(2, 3, 3, 3).double()  # a map of one pixel looks like its gate
    model(one)
    small = agrees_exactly(model, one)
    larger = torch.randn(2, 3, 6, 5).double()
    torch.testing.assert_close(small.model(larger), model(larger), atol=1e-10, rtol=1e-10)


def test_channels_that_a_gate_multiplies_go_with_it() -> None:
    torch.manual_seed(0)
    model = Excite(nn.Sigmoid()).double()
    model.first.weight.data[:3], model.first.bias.data[:3] = 0, 0  # zero times any gate
    result = agrees_exactly(model, torch.randn(2, 3, 6, 5).double())
    assert result.model.expand.weight.shape == (5, 4, 1, 1)
    assert result.model.first.weight.shape == (5, 3, 3, 3)


def test_a_gated_linear_unit_loses_the_neurons_of_either_factor() -> None:
    torch.manual_seed(0)
    layers = {"up": nn.Linear(5, 8, bias=False), "gate": nn.Linear(5, 8, bias=False), "down": nn.Linear(8, 5)}
    layers["up"].weight.data[:2] = 0
    layers["gate"].weight.data[1:4] = 0
    model = Model(lambda m, x: x + m.down(F.silu(m.gate(x)) * m.up(x)), **layers).double()
    result = agrees_exactly(model, torch.randn(2, 6, 5).double())
    assert result.model.up.weight.shape == result.model.gate.weight.shape == (4, 5)
    assert result.sites[0].removed == 4


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "nearest-exact"])
def test_constants_and_dead_channels_pass_an_upsampling(mode: str) -> None:
    torch.manual_seed(0)
    layers = {"skip": nn.Conv2d(3, 4, 1), "up": nn.Conv2d(3, 6, 1), "last": nn.Conv2d(6, 2, 3)}
    layers["up"].weight.data[:4] = 0
    layers["last"].weight.data[:, 4] = 0

    def forward(m, x):
        return m.last(torch.relu(F.interpolate(m.up(F.max_pool2d(x, 2)), scale_factor=2, mode=mode)))

    result = agrees_exactly(Model(forward, **layers).double(), torch.randn(2, 3, 8, 6).double())
    assert result.model.up.weight.shape == (1, 3, 1, 1)
