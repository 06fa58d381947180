"""However a flatten from dimension 1 is written, collapse reads it as `nn.Flatten`; what is none stays as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import layercollapse as lc

Function = Callable[[Tensor], Tensor]

# Of a map (N, 4, 6, 6).
SPELLINGS: dict[str, Function] = {
    "view(N, -1)": lambda x: x.view(x.size(0), -1),
    "reshape(N, -1)": lambda x: x.reshape(x.shape[0], -1),
    "view(len(x), -1)": lambda x: x.view(len(x), -1),
    "view(N, C H W)": lambda x: x.view(x.size(0), x.size(1) * x.size(2) * x.size(3)),
    "view(N, number)": lambda x: x.view(x.size(0), 144),
    "view(-1, C H W)": lambda x: x.view(-1, x.shape[1:].numel()),
    "view(-1, number)": lambda x: x.view(-1, 144),
    "x.flatten(1, -1)": lambda x: x.flatten(1, -1),
    "x.flatten(-3)": lambda x: x.flatten(-3),
    "in two steps": lambda x: x.flatten(2).flatten(1),
    "in two views": lambda x: x.view(x.size(0), x.size(1), -1).view(x.size(0), -1),
    "twice": lambda x: x.flatten(1).view(-1, 144),
    "before a dropout": lambda x: nn.functional.dropout(x.view(-1, 144), 0.5, training=False),
}


class Network(nn.Module):
    """Two convolutions with rectifiers, a flatten, and a linear layer."""

    def __init__(self, flatten: Function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.bend, self.act, self.last = nn.ReLU(), nn.ReLU(), nn.Linear(144, 5)
        self.flatten = flatten

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.flatten(self.act(self.second(self.bend(self.first(x))))))


def linear(network: Network) -> None:
    """The second convolution merges with the linear layer."""
    network.second.bias.data += 50


def dead_and_constant(network: Network) -> None:
    """Two of its channels are off, and one is a constant."""
    network.second.bias.data[:2] -= 50
    network.second.weight.data[2], network.second.bias.data[2] = 0, 2


def collapsed(flatten: Function, change: Callable[[Network], None]) -> lc.CollapseResult:
    network = Network(flatten).double().eval()
    change(network)
    x = torch.rand(1 if change is linear else 4, 3, 6, 6).double()
    result = lc.collapse(network, x, box=(0.0, 1.0), cost="macs", tolerance=1e-10)
    for batch in (1, 4, 7):
        other = torch.rand(batch, 3, 6, 6).double()
        torch.testing.assert_close(result.model(other), network(other), atol=1e-10, rtol=1e-10)
    return result


@pytest.mark.parametrize("change", [linear, dead_and_constant])
def test_every_spelling_collapses_as_the_module_does(change: Callable[[Network], None]) -> None:
    module = collapsed(nn.Flatten(), change)
    assert module.after.macs < module.before.macs
    assert module.after.parameters < module.before.parameters or change is linear
    for name, flatten in SPELLINGS.items():
        spelled = collapsed(flatten, change)
        assert (spelled.after, spelled.collapsed) == (module.after, module.collapsed), name


def test_a_flatten_between_linear_layers_is_nothing() -> None:
    class Flat(Network):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.flatten(self.before(x)))

    model = Flat(lambda x: x.view(x.size(0), -1))
    model.before = nn.Linear(200, 144)
    result = lc.collapse(model, torch.rand(4, 200), cost="macs")
    assert result.after.depth == 1


NONE: dict[str, tuple[tuple[int, ...], Function]] = {
    "rows of the positions": ((2, 1, 5), lambda x: x.view(-1, 5)),
    "two samples in a row": ((4, 3, 5), lambda x: x.view(-1, 30)),
    "moved before": ((2, 3, 5), lambda x: x.transpose(0, 1).reshape(3, -1)),
    "no layer behind a number": ((2, 3, 5), lambda x: x.view(-1, 15)),
    "from dimension 0": ((2, 1, 5), lambda x: x.flatten(0, 1)),
    "of other bits": ((2, 4), lambda x: x.view(torch.int32).view(torch.float32)),
}


@pytest.mark.parametrize("name", NONE)
def test_what_does_the_same_for_the_example_alone_stays(name: str) -> None:
    shape, function = NONE[name]

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(function(torch.relu(x)))

    x = torch.randn(shape)
    result = lc.collapse(Model(), x, cost="macs")
    for other in (x, torch.cat([x, x]), torch.cat([x, x], 1)):
        assert torch.equal(result.model(other), Model()(other))
