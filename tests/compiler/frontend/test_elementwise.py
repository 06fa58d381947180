"""Arithmetic with numbers, tensors of one element and constant factors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import layercollapse as lc
from networks import Model, agrees_exactly

NUMBERS = {
    "product": lambda x: 2 * x,
    "quotient": lambda x: x / 3,
    "sum": lambda x: x + 0.5,
    "difference": lambda x: x - 0.5,
    "reversed difference": lambda x: 1 - x,
    "negative": lambda x: -x,
    "alpha": lambda x: torch.sub(x, 0.25, alpha=3),
    "several": lambda x: 1 - (2 * x + 3) / 4,
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_join_the_layers_beside_them(name: str) -> None:
    torch.manual_seed(0)
    function = NUMBERS[name]
    model = Model(lambda m, x: m.b(function(m.a(function(x)))), a=nn.Linear(3, 4), b=nn.Conv1d(5, 2, 1)).double()
    result = agrees_exactly(model, torch.randn(2, 5, 3).double())
    assert not any(node.op == "call_function" for node in result.model.graph.nodes)
    # What no layer can take stays arithmetic with numbers.
    left = agrees_exactly(
        Model(lambda m, x: torch.softmax(function(m.a(torch.relu(function(x)))), 1), a=nn.Softmax(1)),
        torch.randn(2, 5).double(),
    )
    assert left.after.parameters == 0


@pytest.mark.parametrize("sign", [-1, 0.5])
def test_differences_and_weighted_sums_of_tensors_merge_like_sums(sign: float) -> None:
    torch.manual_seed(0)

    def forward(m, x):
        return m.b(torch.sub(m.a(x), x, alpha=-sign) if sign > 0 else x - m.a(x))

    model = Model(forward, a=nn.Conv2d(3, 3, 3, padding=1), b=nn.Conv2d(3, 2, 1)).double()
    result = agrees_exactly(model, torch.randn(2, 3, 5, 6).double())
    assert [type(m) for m in result.model.modules()][1:] == [nn.Conv2d]


def test_a_difference_that_stays_is_one_operation() -> None:
    model = Model(lambda m, x: torch.relu(x) - torch.sigmoid(x) * 0.5, a=nn.ReLU())
    result = lc.collapse(model, torch.randn(2, 5), None)
    called = [node.target for node in result.model.graph.nodes if node.op == "call_function"]
    assert called.count(torch.ops.aten.add.Tensor) == 1
    assert result.after.parameters == 0


def test_a_parameter_of_one_element_stays_one() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.gate = nn.Linear(3, 3), nn.Parameter(torch.tensor([0.5]))

        def forward(self, x):
            return torch.softmax(self.gate * torch.relu(self.a(x)), 1)

    result = agrees_exactly(Gate().double(), torch.randn(2, 5, 3).double())
    assert sorted(p.numel() for p in result.model.parameters()) == [1, 3, 9]


def test_a_factor_and_a_summand_of_one_element_over_maps() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.more = nn.Parameter(torch.tensor([0.5])), nn.Parameter(torch.tensor([0.25]))

        def forward(self, x):
            return torch.softmax(self.gate * torch.relu(x) + self.more, 1)

    agrees_exactly(Gate().double(), torch.randn(2, 3, 4, 5).double())


def test_a_scale_beside_a_tied_head_does_not_copy_the_embedding() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(30, 8), nn.Linear(8, 30, bias=False)
            self.head.weight, self.gain = self.table.weight, nn.Parameter(torch.rand(8) + 0.5)

        def forward(self, ids):
            x = self.table(ids)
            return 0.125 * self.head(self.gain * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))

    model = Tied().double().eval()
    ids = torch.arange(12).reshape(2, 6)
    result = lc.collapse(model, ids, None, cost="macs")
    torch.testing.assert_close(result.model(ids + 3), model(ids + 3), atol=1e-10, rtol=1e-10)
    assert result.after.parameters == result.before.parameters


class Gated(nn.Module):
    """One gate for all features of a position, or a gate of the input."""

    def __init__(self, gates: int) -> None:
        super().__init__()
        self.gate, self.other, self.head = nn.Linear(4, gates), nn.Linear(4, 4), nn.Linear(4, 3)
        nn.init.zeros_(self.gate.weight)

    def forward(self, x):
        return self.head(self.other(x) + x * self.gate(x))


@pytest.mark.parametrize("value", [0.0, 0.5])
@pytest.mark.parametrize("gates", [1, 4])
@pytest.mark.parametrize("example", [torch.zeros, torch.randn])
def test_constant_gates(example: Callable[..., torch.Tensor], gates: int, value: float) -> None:
    """One constant for all channels says nothing along them; an example of zeros would not show it."""
    model = Gated(gates).double()
    nn.init.constant_(model.gate.bias, value)
    for size in ((2, 5, 4), (6, 4)):
        result = lc.collapse(model, example(size).double(), None, cost="macs")
        assert {p.dtype for p in result.model.parameters()} == {torch.float64}
        x = torch.randn(size).double()
        torch.testing.assert_close(result.model(x), model(x), rtol=0, atol=1e-12)
