"""A sum with a constant tensor is a shift, a product a scale; where shapes, dtypes or costs allow it."""

from __future__ import annotations

import torch
from torch import nn

from layercollapse.compiler.backend.emit import emit
from layercollapse.compiler.ir.records import ChannelAffine
from layercollapse.compiler.passes.constants import constants_in_products, constants_in_sums
from layercollapse.compiler.passes.context import PassContext
from networks import Model, lowered


def constant(*values: float) -> nn.Module:
    layer = nn.Linear(4, len(values))
    layer.weight.data.zero_()
    layer.bias.data = torch.tensor(values)
    return layer


def scales(run, model: nn.Module, x: torch.Tensor) -> list[tuple[list[float], list[float]]]:
    model = model.double()
    net = lowered(model, x.double())
    before = {id(op) for op in net.ops.values()}
    run(net, PassContext())
    net.sweep()
    torch.testing.assert_close(emit(net.copy())(x.double()), model(x.double()), rtol=0, atol=1e-12)
    new = [op for _, op in net.records(ChannelAffine) if id(op) not in before]
    return [(op.scale.tolist(), op.shift.tolist()) for op in new]


X = torch.randn(5, 4)


def test_sums_and_products_on_either_side() -> None:
    layers = {"a": constant(1.0, -2.0, 3.0), "b": nn.Linear(4, 3)}
    for function in (lambda m, x: m.a(x) + m.b(x), lambda m, x: m.b(x) + m.a(x)):
        assert scales(constants_in_sums, Model(function, **layers), X) == [([1.0, 1.0, 1.0], [1.0, -2.0, 3.0])]
        assert scales(constants_in_products, Model(function, **layers), X) == []
    for function in (lambda m, x: m.a(x) * m.b(x), lambda m, x: m.b(x) * m.a(x)):
        assert scales(constants_in_products, Model(function, **layers), X) == [([1.0, -2.0, 3.0], [0.0, 0.0, 0.0])]
        assert scales(constants_in_sums, Model(function, **layers), X) == []


def test_the_gate_of_a_squeeze_and_excitation() -> None:
    gate = nn.Conv2d(4, 4, 1)
    gate.weight.data.zero_()
    gate.bias.data = torch.tensor([0.0, 100.0, -100.0, 0.0])
    model = Model(lambda m, x: m.b(x) * torch.sigmoid(m.a(x.mean((2, 3), keepdim=True))), a=gate, b=nn.Conv2d(4, 4, 3))
    ((scale, shift),) = scales(constants_in_products, model, torch.randn(2, 4, 6, 6))
    torch.testing.assert_close(torch.tensor(scale), torch.tensor([0.5, 1.0, 0.0, 0.5]))
    assert shift == [0.0] * 4


def test_what_stays() -> None:
    partly = constant(1.0, 2.0, 3.0)
    partly.weight.data[0] = 1.0  # one channel varies
    for model in (
        Model(lambda m, x: m.a(x) + m.b(x), a=partly, b=nn.Linear(4, 3)),
        Model(lambda m, x: m.a(x) + m.b(x), a=constant(1.0, 2.0, 3.0), b=constant(1.0, 1.0, 1.0)),  # nothing varies
        Model(lambda m, x: m.b(x) * m.a(x), a=constant(3.0), b=nn.Linear(4, 3)),  # one for all channels
        Model(lambda m, x: m.a(x) * (m.b(x) > 0), a=constant(1.0, 2.0, 3.0), b=nn.Linear(4, 3)),  # a mask
    ):
        for run in (constants_in_sums, constants_in_products):
            assert scales(run, model, X) == []
    position = Model(lambda m, x: m.b(x) * m.a(x), a=constant(3.0), b=nn.Linear(4, 3))  # a gate of every position
    assert scales(constants_in_products, position, torch.randn(5, 7, 4)) == []
