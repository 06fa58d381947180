"""Names of the model in the emitted one: different ones stay different."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

import layercollapse as lc
from layercollapse.compiler.ir.names import identifier


class Branches(nn.Module):
    """A layer under each name, with its own weight, on the same input; `attribute` is a parameter that is only read."""

    def __init__(self, names: Sequence[str], attribute: str = "scale") -> None:
        super().__init__()
        self.branches, self.name = nn.ModuleDict({name: nn.Linear(4, 4) for name in names}), attribute
        self.register_parameter(attribute, nn.Parameter(torch.randn(4, 4)))

    def forward(self, x):
        x = x @ getattr(self, self.name).softmax(0)
        return torch.cat([torch.relu(branch(x)) for branch in self.branches.values()], 1)


ALIKE = [
    ("+", "-"),
    ("up-1", "up_1", "up.1".replace(".", ":"), "up_x2d_1"),
    ("in", "in_", "in__"),
    ("graph", "graph_"),
    ("relu", "relu_2", "relu-2"),
    ("ﬁ", "fi"),
    ("__a", "_a", "a"),
    ("ä", "a\u0308"),
]


@pytest.mark.parametrize("names", ALIKE)
def test_names_that_look_alike(names: tuple[str, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Branches(names).double().eval(), torch.randn(3, 4).double()
    result = lc.collapse(model, x, None, cost="macs")
    assert result.unshared == ()
    assert result.after.parameters == result.before.parameters == 16 + 20 * len(names)
    result.save(tmp_path)
    for other in (result.model, lc.load(tmp_path), torch.export.load(tmp_path / "model.pt2").module()):
        torch.testing.assert_close(other(2 * x), model(2 * x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("attribute", ["relu", "relu_1", "matmul", "cat", "softmax", "x"])
def test_a_parameter_with_the_name_of_an_operation(attribute: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Branches("ab", attribute).double().eval(), torch.randn(3, 4).double()
    result = lc.collapse(model, x, None, cost="macs")
    result.save(tmp_path)
    for other in (result.model, lc.load(tmp_path)):
        torch.testing.assert_close(other(2 * x), model(2 * x), rtol=0, atol=1e-12)


class Chain(nn.Module):
    """Layers and a parameter with names of the model itself."""

    def __init__(self, names: Sequence[str], attribute: str) -> None:
        super().__init__()
        self.names, self.attribute = names, attribute
        for name in names:
            self.add_module(name, nn.Linear(4, 4))
        self.register_parameter(attribute, nn.Parameter(torch.randn(4, 4)))

    def forward(self, x):
        x = x @ getattr(self, self.attribute).softmax(0)
        for name in self.names:
            x = torch.relu(self.get_submodule(name)(x))
        return x


@pytest.mark.parametrize(
    ("names", "attribute"),
    [(("self", "b"), "a"), (("a", "b"), "self"), (("self", "self_"), "self__"), (("torch", "aten"), "device")],
)
def test_names_that_a_forward_uses(names: tuple[str, ...], attribute: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Chain(names, attribute).double().eval(), torch.randn(3, 4).double()
    result = lc.collapse(model, x, None, cost="macs")
    result.save(tmp_path)
    for other in (result.model, lc.load(tmp_path)):
        torch.testing.assert_close(other(2 * x), model(2 * x), rtol=0, atol=1e-12)


def test_the_names_of_most_models_stay() -> None:
    for name in ("layer1.0.conv1.weight", "blocks.10.mlp.fc_x", "größe", "0", "_w"):
        assert identifier(name) == name
    assert identifier("a.in.up-1") == "a.in_.up_x2d_1"


def test_no_two_names_become_one() -> None:
    names = ["".join(some) for length in range(1, 6) for some in itertools.product("_x2-é", repeat=length)]
    names += [word + "_" * n for word in ("in", "code", "meta", "self") for n in range(3)]
    new = {identifier(name) for name in names}
    assert len(new) == len(names)
    assert all(part.replace("_", "a").isalnum() and not part.startswith("__") for part in new)
