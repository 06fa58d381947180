"""Questions asked of single nodes of a captured graph."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import layercollapse as lc
from layercollapse.graph.aten import (
    computed,
    example_shape,
    functional,
    has_weight,
    layer_of,
    module_path,
    mutates,
    packet,
    rectifier_of,
    shares_memory,
    spread,
    weight_of,
)
from networks import Model

aten = torch.ops.aten


def call(target, *args) -> fx.Node:
    """A node that calls an operation on placeholders, in the place of tensors."""
    graph = fx.Graph()
    return graph.call_function(target, tuple(graph.placeholder("x") if a is Ellipsis else a for a in args))


def test_packets() -> None:
    assert packet(call(aten.add.Tensor, ..., 1)) is aten.add
    assert packet(fx.Graph().placeholder("x")) is None
    assert packet(3) is None


def test_what_changes_its_argument_and_what_does_the_same_out_of_place() -> None:
    assert mutates(call(aten.relu_.default, ...))
    assert not mutates(call(aten.relu.default, ...))
    assert functional(call(aten.relu_.default, ...)) is aten.relu.default
    assert functional(call(aten.add_.Scalar, ..., 1)) is aten.add.Scalar
    assert functional(call(aten.index_put_.default, ..., [], ...)) is aten.index_put.default
    assert functional(call(aten.resize_.default, ..., [3])) is None or not mutates(call(aten.resize.default, ..., [3]))


@pytest.mark.parametrize(
    ("target", "args", "shares"),
    [
        (aten.view.default, (..., [2]), True),
        (aten.slice.Tensor, (..., 0, 0, 1), True),
        (aten.reshape.default, (..., [2]), True),  # may be, and its schema does not say so
        (aten.dropout.default, (..., 0.5, False), True),
        (aten.clone.default, (...,), False),
        (aten.relu.default, (...,), False),
        (aten.relu_.default, (...,), False),
    ],
)
def test_what_may_be_a_view(target, args, shares: bool) -> None:
    assert shares_memory(call(target, *args)) == shares


def test_one_setting_for_all_dimensions() -> None:
    assert spread(2, 3) == spread([2], 3) == (2, 2, 2)
    assert spread((1, 2), 2) == (1, 2)


def captured(function, **layers: nn.Module) -> lc.Capture:
    return lc.capture(Model(function, **layers), torch.randn(3, 4))


def weights(capture: lc.Capture) -> list[str]:
    found = (weight_of(node, capture.tensors) for node in capture.graph.nodes if node.op == "call_function")
    return [name for name in found if name is not None]


def test_layers_are_known_by_the_weight_that_they_apply() -> None:
    a, b = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
    assert weights(captured(lambda m, x: m.b(m.a(x).relu()), a=a, b=b)) == ["a.weight", "b.weight"]
    assert weights(captured(lambda m, x: x @ m.a.weight.t(), a=a)) == ["a.weight"]  # through a view
    assert weights(captured(lambda m, x: m.a.weight @ x.t(), a=a)) == ["a.weight"]  # either factor
    assert weights(captured(lambda m, x: torch.einsum("ni,oi->no", x, m.a.weight), a=a)) == ["a.weight"]
    assert weights(captured(lambda m, x: F.linear(x, 2 * m.a.weight), a=a)) == []  # computed
    assert weights(captured(lambda m, x: x @ x.t())) == []
    capture = captured(lambda m, x: m.a(x.sin()), a=a)
    (read,) = (layer_of(node, capture.tensors)[0] for node in capture.graph.nodes if layer_of(node, capture.tensors))
    assert packet(read) is aten.sin


def test_values_that_follow_from_parameters_alone() -> None:
    def forward(m, x):
        made = m.a.weight.abs() + 1
        noise = torch.rand_like(m.a.weight)
        return F.linear(x, made) + F.linear(x, noise) + m.a(x)

    capture = captured(forward, a=nn.Linear(4, 4))
    made = computed(capture.graph, capture.tensors)
    names = {packet(node).__name__ for node in made if node.op == "call_function"}
    assert names == {"abs", "add"}
    layers = [node for node in capture.graph.nodes if packet(node) is aten.linear]
    assert [has_weight(node, made) for node in layers] == [True, False, True]


def test_rectifiers_and_the_modules_that_call_them() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.LeakyReLU(0.1)), nn.Tanh())
    nodes = list(lc.capture(model, torch.randn(3, 4)).graph.nodes)
    found = {module_path(node): row.kind for node in nodes if (row := rectifier_of(node)) is not None}
    assert found == {"1.0": "leaky_relu"}
    assert {module_path(node) for node in nodes if node.op == "call_function"} == {"0", "1.0", "2"}


def test_shapes_of_the_example() -> None:
    capture = captured(lambda m, x: x.flatten(0))
    shapes = [example_shape(node.meta["val"]) for node in capture.graph.nodes if node.op == "call_function"]
    assert shapes[-1] == (12,)
    assert example_shape(3) is None
