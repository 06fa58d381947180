"""What an emitted model returns: its containers and its memory are the original's, before and after a file."""

from __future__ import annotations

import enum
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn

import layercollapse as lc

aten = torch.ops.aten


class Gives(nn.Module):
    """What a function makes of the input, through a layer of a kind, whose weights may be gone, and a parameter."""

    def __init__(self, function: Callable[..., Any], layer: nn.Module, dead: bool = False) -> None:
        super().__init__()
        self.function, self.layer, self.own = function, layer, nn.Parameter(torch.randn(4))
        if dead:
            nn.init.zeros_(layer.weight)

    def forward(self, x):
        return self.function(self, x)


def linear(function: Callable[..., Any], dead: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return Gives(function, nn.Linear(4, 4), dead).double().eval()


def through(make: Callable[[Tensor], Any]) -> Callable[..., Any]:
    return lambda m, x: make(torch.relu(m.layer(x)))


def tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def copies(model: nn.Module) -> int:
    return sum(node.target is aten.clone.default for node in model.graph.nodes)


def forms(result: lc.CollapseResult, folder: Path) -> list[nn.Module]:
    result.save(folder)
    return [result.model, lc.load(folder), torch.export.load(folder / "model.pt2").module()]


# name -> what it gives, whether the layer is dead, and how many of the outputs have to be copied.
NEW: dict[str, tuple[Callable[..., Any], bool, int]] = {
    "dead layer behind a layer": (lambda m, x: m.layer(torch.relu(m.layer(x))), True, 1),
    "dead layer, moved": (lambda m, x: torch.relu(m.layer(x)).unsqueeze(1).transpose(0, 1), True, 1),
    "clone": (lambda m, x: (x.clone(), m.layer(x)), False, 1),
    "clone of a view": (lambda m, x: (x[:, 1:].clone(), m.layer(x)), False, 1),
    "dropout, then clone": (lambda m, x: (F.dropout(x, 0.5, False).clone(), m.layer(x)), False, 1),
    "parameter": (lambda m, x: (m.own.clone(), m.layer(x)), False, 1),
    "two of one": (through(lambda y: (y, y.clone())), False, 1),
    "parts of one": (through(lambda y: [part.clone() for part in y.split(2, 1)]), False, 1),
    "dead rectifier": (lambda m, x: (torch.relu(x * 0) + x, m.layer(x)), False, 1),
    "new": (lambda m, x: (torch.relu(m.layer(x)), m.layer(x).softmax(1)), False, 0),
    "several results": (lambda m, x: tuple(m.layer(x).max(1)), False, 0),
}


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("batch", [1, 3])
def test_outputs_are_new_where_they_were(name: str, batch: int, tmp_path: Path) -> None:
    function, dead, number = NEW[name]
    model = linear(function, dead)
    result = lc.collapse(model, torch.randn(batch, 4).double(), None, cost="macs")
    assert copies(result.model) == number
    for other in forms(result, tmp_path):
        x = torch.randn(5, 4).double()
        expected, given, before = model(x), x.clone(), tensors(other(x))
        torch.testing.assert_close(before, tensors(expected), rtol=0, atol=1e-12)
        with torch.no_grad():
            for at in range(len(before)):
                outputs = tensors(other(x))
                others = [t.clone() for t in outputs]
                outputs[at].zero_()
                assert all(torch.equal(a, b) for i, (a, b) in enumerate(zip(outputs, others, strict=True)) if i != at)
            assert torch.equal(x, given)
            torch.testing.assert_close(tensors(other(x)), tensors(expected), rtol=0, atol=1e-12)


def test_a_constant_map_is_new_and_its_rows_are_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1)).double().eval()
    nn.init.zeros_(model[0].weight)
    nn.init.ones_(model[0].bias)
    x = torch.randn(1, 2, 5, 5).double()
    for other in forms(lc.collapse(model, x, None, cost="macs"), tmp_path):
        x = torch.randn(3, 2, 5, 5).double()
        with torch.no_grad():
            other(x).sigmoid_()
            y = other(x)
            y[0] = 0
            torch.testing.assert_close(y[1:], model(x)[1:], rtol=0, atol=1e-12)
            torch.testing.assert_close(other(x), model(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: (x, m.layer(x)),
        lambda m, x: (x.view(-1), m.layer(x)),
        lambda m, x: (m.own, m.layer(x)),
        lambda m, x: (m.own.expand(len(x), 4), m.layer(x)),
        through(lambda y: (y, y, y.view(-1), *y.split(2, 1))),
        lambda m, x: (m.layer(x), x.shape[0], x.shape[0], None),
    ],
)
def test_what_was_shared_may_be_and_costs_no_copy(function: Callable[..., Any]) -> None:
    model, x = linear(function), torch.randn(3, 4).double()
    result = lc.collapse(model, x, None, cost="macs")
    assert copies(result.model) == 0
    torch.testing.assert_close(tensors(result.model(x)), tensors(model(x)), rtol=0, atol=1e-12)


def test_one_output_twice_stays_one() -> None:
    def twice(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.clone()
        return y, y

    model, x = linear(twice), torch.randn(3, 4).double()
    first, second = lc.collapse(model, x, None, cost="macs").model(x)
    assert first is second
    assert first.data_ptr() != x.data_ptr()


class Level(enum.IntEnum):
    LOW, HIGH = 3, 1


# name -> a container of two tensors, and what a file has of it.
CONTAINERS: dict[str, tuple[Callable[..., Any], Callable[..., Any] | None]] = {
    "numbers": (lambda a, b: {1: a, 0: b}, None),
    "mixed": (lambda a, b: {1: a, "1": b, None: b, 2.5: a, True and "x": a}, None),
    "tuples": (lambda a, b: {(1, "a"): a, ("b", (2, None)): b}, None),
    "nested": (lambda a, b: [{0: (a, {"a": {3: b, 2: a}})}, {}], None),
    "numbers that stay": (lambda a, b: {7: a, 5: 3, 6: None, 4: {2: b}}, None),
    "ordered": (lambda a, b: OrderedDict([("b", a), ("a", b), (0, a)]), None),
    "default": (lambda a, b: defaultdict(list, {1: a, 0: b}), None),
    "enumeration": (lambda a, b: {Level.LOW: a, Level.HIGH: b}, lambda d: {int(k): v for k, v in d.items()}),
}


def same(got: Any, expected: Any) -> None:
    assert type(got) is type(expected)
    if isinstance(expected, dict):
        assert list(got) == list(expected)
        assert [type(key) for key in got] == [type(key) for key in expected]
        got, expected = list(got.values()), list(expected.values())
    if isinstance(expected, list | tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            same(one, other)
    elif isinstance(expected, Tensor):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    else:
        assert got == expected


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_are_those_of_the_original(name: str, tmp_path: Path) -> None:
    make, plain = CONTAINERS[name]
    model, x = linear(lambda m, x: make(torch.relu(m.layer(x)), 2 * m.layer(x))), torch.randn(3, 4).double()
    result = lc.collapse(model, x, None, cost="macs")
    first, loaded, exported = forms(result, tmp_path)
    expected = model(2 * x)
    same(first(2 * x), expected)
    same(loaded(2 * x), expected if plain is None else plain(expected))
    got = exported(2 * x)
    assert len(got) == len(model(x))
    if name == "tuples":
        assert list(got) == ["(1, 'a')", "('b', (2, None))"]
    elif isinstance(got, dict):
        assert list(got) == list(model(x))


def test_a_key_that_no_file_can_hold_is_refused_by_the_file_alone(tmp_path: Path) -> None:
    model, x = linear(lambda m, x: {torch.float32: m.layer(x)}), torch.randn(3, 4).double()
    result = lc.collapse(model, x, None, cost="macs")
    same(result.model(x), model(x))
    with pytest.raises(lc.LayerCollapseError, match=r"model: expected .* dicts whose keys .*dtype, .*: torch.float32"):
        result.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()
