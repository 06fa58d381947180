"""Arguments of aten operations by their names, as given or as the schema says."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from layercollapse.compiler.ir.arguments import border_value, named

aten = torch.ops.aten


def call(target, *args, **kwargs) -> fx.Node:
    graph = fx.Graph()
    return graph.call_function(target, (graph.placeholder("x"), *args), kwargs)


def test_an_argument_by_its_name() -> None:
    assert named(call(aten.layer_norm.default, [4]), "eps") == 1e-5  # the schema's
    assert named(call(aten.layer_norm.default, [4], None, None, 0.5), "eps") == 0.5
    assert named(call(aten.add.Tensor, 1, alpha=3), "alpha") == 3
    assert named(call(aten.neg.default), "alpha") is None
    assert named(call(aten.neg.default), "alpha", 1) == 1


@pytest.mark.parametrize(
    ("target", "arguments", "value"),
    [
        (aten.pad.default, ([1, 1],), 0),
        (aten.pad.default, ([1, 1], "constant", 2.0), 2.0),
        (aten.pad.default, ([1, 1], "reflect"), None),
        (aten.constant_pad_nd.default, ([1, 1],), 0),
        (aten.constant_pad_nd.default, ([1, 1], -1.0), -1.0),
        (aten.reflection_pad1d.default, ([1, 1],), None),
    ],
)
def test_what_a_padding_puts_around(target, arguments: tuple, value: float | None) -> None:
    assert border_value(call(target, *arguments)) == value
