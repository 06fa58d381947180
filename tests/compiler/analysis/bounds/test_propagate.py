"""Bounds against brute force: never wrong, and not empty."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import layercollapse as lc
from layercollapse.compiler.analysis.bounds.propagate import bounds, proven_states
from layercollapse.compiler.frontend.lower import lower
from layercollapse.compiler.ir.graph import Net


def lowered(model: nn.Module, x: torch.Tensor) -> Net:
    return lower(lc.capture(model, x), model)


@pytest.mark.parametrize("seed", range(20))
def test_certified_states_against_an_exhaustive_grid(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU6(), nn.Linear(4, 2))
    model[0].bias.data.mul_(4)
    model[2].bias.data.mul_(8)
    grid = torch.tensor(list(itertools.product(torch.linspace(-1, 1, 21).tolist(), repeat=3)))
    net = lowered(model, grid[:2])
    found = bounds(net, {"input": (-1.0, 1.0)})
    x = grid
    for node in net.graph.nodes:
        if node.op == "call_module":
            x = model.get_submodule(str(node.target))(x)
            assert bool((x.amin(0).double() >= found[node].low).all())
            assert bool((x.amax(0).double() <= found[node].high).all())
    # One linear layer over a box: the bounds are reached at a corner, so interval propagation is tight there.
    first = next(node for node in net.graph.nodes if node.op == "call_module")
    z = model[0](grid).double()
    torch.testing.assert_close(found[first].low[0], z.amin(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[first].high[0], z.amax(0), atol=1e-5, rtol=0)


def test_what_is_proven() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    model[0].weight.data = torch.tensor([[1.0, -1.0], [0.5, 0.0], [0.0, 0.25]])
    model[0].bias.data = torch.tensor([3.0, -2.0, 1.0])
    x = torch.zeros(2, 2)
    net = lowered(model, x)
    assert proven_states(net) == {}
    assert proven_states(net, {"input": (-1.0, 1.0)})["1"].tolist() == [1, 0, 1]
    assert proven_states(net, {"input": (-1.0, 5.0)}) == {}  # 0.5 · 5 − 2 > 0
    result = lc.collapse(model, x, None, box=(torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0])))
    assert result.sites[0].guarantee == "certified"


class Twice(nn.Module):
    """The second rectifier sees a sum of non-negative values: it does nothing, for any input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(3, 2)

    def forward(self, x):
        y = torch.relu(self.conv(x))
        return self.head(torch.relu(y + nn.functional.max_pool2d(y, 3, 1, 1)).mean((2, 3)))


def test_algebra_alone_proves_a_rectifier_of_non_negative_values() -> None:
    result = lc.collapse(Twice(), torch.randn(2, 1, 6, 6), None)
    assert [(s.status, s.guarantee) for s in result.sites] == [("kept", ""), ("collapsed", "exact")]
    assert "whatever the input" in result.sites[1].reason


def test_smooth_rectifiers_are_bounded_and_never_certified() -> None:
    for act in (nn.GELU(), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.ELU(), nn.CELU(), nn.SELU(), nn.LeakyReLU(-0.5)):
        model = nn.Sequential(nn.Linear(1, 1), act, nn.Linear(1, 1))
        model[0].weight.data.fill_(1.0)
        model[0].bias.data.zero_()
        net = lowered(model, torch.zeros(2, 1))
        node = [n for n in net.graph.nodes if n.op == "call_module"][1]
        for low, high in ((-6.0, 6.0), (-1.0, 0.5), (-0.3, 2.0), (-6.0, -2.0), (0.5, 3.0)):
            interval = bounds(net, {"input": (low, high)})[node]
            y = act(torch.linspace(low, high, 20001, dtype=torch.float64))
            assert float(interval.low) <= float(y.min()) <= float(interval.low) + 1e-4
            assert float(interval.high) - 1e-4 <= float(y.max()) <= float(interval.high)
        if not isinstance(act, nn.LeakyReLU):
            assert proven_states(net, {"input": (50.0, 60.0)}) == {}


def test_embeddings_bound_token_models() -> None:
    model = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model[1].bias.data.fill_(40.0)
    net = lowered(model, torch.zeros(2, 5, dtype=torch.long))
    assert proven_states(net)["2"].tolist() == [1, 1, 1, 1]


def test_errors() -> None:
    model, x = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.zeros(2, 2)
    for box, message in (
        ({"other": (0, 1)}, "expected the inputs input, got 'other'"),
        ((1.0, 0.0), "low not above high"),
        ((torch.zeros(3), torch.ones(3)), r"tensors \(2,\)"),
        (3.0, "got 3.0"),
        ((None, 1.0), "expected low and high"),
        (("a", "b"), "expected low and high"),
        ((float("nan"), 1.0), "low not above high"),
        ({"input": (0.0, 1.0, 2.0)}, "expected low and high"),
        ({"input": 3.0}, "expected low and high"),
    ):
        with pytest.raises(lc.LayerCollapseError, match=message):
            lc.collapse(model, x, None, box=box)
