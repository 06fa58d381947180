"""Calls that are lines: in checkpoints, copies, half precision, and under torch.compile."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import layercollapse as lc
from rectifier_zoo import X, by_hand, zoo


@pytest.mark.parametrize("name", ["own", "forward#2"])
def test_in_a_checkpoint_that_is_computed_again(name):
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.zoo = zoo()

        def forward(self, x):
            return checkpoint(self.zoo, x, use_reentrant=False)

    model, twin = Parts(), zoo()
    site = f"zoo.{name}" if name == "own" else name.replace("forward", "zoo")
    lc.linearize(model, {site: "identity"}, X)
    model(X).square().sum().backward()
    by_hand(twin, {name: lambda x: x}, X).square().sum().backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_copy_has_its_own():
    model = zoo()
    handle = lc.linearize(model, {"own": "identity", "forward#2": "zero"}, X)
    twin = copy.deepcopy(model)
    expected = model(X)
    handle.remove()
    assert torch.equal(twin(X), expected)
    assert not torch.equal(model(X), expected)


def test_autocast_and_half_precision_keep_the_dtype():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(2, 4)
    lc.linearize(model, {"1": (torch.ones(8), torch.ones(8))}, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
    assert model.to(torch.float16)(x.half()).dtype == torch.float16


def test_compiled_as_a_module_of_its_own_and_beside_the_graph_otherwise():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(2, 4)
    lc.linearize(model, {"1": torch.arange(8.0)}, x)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))
    other = zoo()
    lc.linearize(other, {"forward": "identity"}, X)
    lc.linearize(other, {"shared#2": "identity"}, X)
    torch.testing.assert_close(torch.compile(other, backend="eager")(X), other(X))
