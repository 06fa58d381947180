"""Which channels hold one value, by hand; and whether the outputs depend on the input at all."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from layercollapse.compiler.analysis.constants import constants, rectified
from layercollapse.compiler.analysis.dataflow import along
from layercollapse.compiler.ir.records import Activation
from networks import Model, lowered

NAN = math.nan


def found(model: nn.Module, x: torch.Tensor, dim: int) -> dict[str, list[float]]:
    """Node -> its constants along a dimension, where any is known; -1 stands for those that vary."""
    net = lowered(model.double(), x.double())
    known = constants(net)
    values = {str(node.target): along(known.get(node), dim) for node in net.graph.nodes}
    return {name: value.nan_to_num(-1.0).tolist() for name, value in values.items() if value is not None}


def three() -> nn.Sequential:
    """Two of three neurons do not read the input, and the rectifier makes 0 and 2 of their biases."""
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    model[0].weight.data[:2] = 0
    model[0].bias.data = torch.tensor([-5.0, 2.0, 1.0])
    model[2].weight.data = torch.tensor([[1.0, 3.0, 0.0], [1.0, 1.0, 1.0]])
    model[2].bias.data = torch.tensor([0.5, 0.5])
    return model


def test_a_bias_goes_through_a_rectifier_into_the_next_layer() -> None:
    known = found(three(), torch.randn(5, 4), -1)
    assert {name: known[name] for name in "012"} == {"0": [-5.0, 2.0, -1.0], "1": [0.0, 2.0, -1.0], "2": [6.5, -1.0]}


@pytest.mark.parametrize("padding", [0, 1])
def test_a_zero_padding_ends_it(padding: int) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 3, padding=padding))
    model[0].weight.data.zero_()
    model[0].bias.data = torch.tensor([1.0, 0.0])
    model[1].weight.data[0, 0] = 1.0  # nine taps of one
    model[1].weight.data[0, 1] = 7.0  # of zero
    model[1].weight.data[1, 0] = 0.0  # reads the zero alone
    model[1].bias.data.fill_(0.25)
    known = found(model, torch.randn(2, 1, 6, 6), 1)
    assert known["0"] == [1.0, 0.0]
    assert known.get("1") == ([9.25, 0.25] if padding == 0 else None)


def test_products_sums_gates_and_concatenations() -> None:
    def forward(m, x):
        gate = torch.sigmoid(m.gate(x))
        y = m.layer(x)
        return torch.cat([gate * y, y + m.other(x)], 1)

    model = Model(forward, gate=nn.Linear(4, 3), layer=nn.Linear(4, 3), other=nn.Linear(4, 3))
    for layer, rows in ((model.gate, 3), (model.layer, 2), (model.other, 1)):
        layer.weight.data[:rows] = 0
    model.gate.bias.data.zero_()  # a half
    model.layer.bias.data = torch.tensor([0.0, 4.0, 1.0])
    model.other.bias.data[0] = 3.0
    known = found(model, torch.randn(5, 4), -1)
    products = [values for values in known.values() if len(values) == 6]
    assert products
    assert all(values == [0.0, 2.0, -1.0, 3.0, -1.0, -1.0] for values in products)


def test_a_norm_scales_what_is_constant() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    model[0].weight.data[0] = 0
    model[0].bias.data[0] = 5.0
    model[1].running_mean[0], model[1].running_var[0], model[1].eps = 1.0, 4.0, 0.0
    model[1].weight.data[0], model[1].bias.data[0] = 3.0, 0.5
    known = found(model, torch.randn(5, 4), -1)
    assert known["1"] == [6.5, -1.0]  # (5 - 1) / 2 · 3 + 0.5


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("relu", {}, [0.0, 0.0, 3.0]),
        ("relu6", {"upper": 2.5}, [0.0, 0.0, 2.5]),
        ("hardtanh", {"lower": -1.0, "upper": 1.0}, [-1.0, 0.0, 1.0]),
        ("leaky_relu", {"slope": torch.tensor([0.1, 0.1, 0.1]).double()}, [-0.2, 0.0, 3.0]),
        ("silu", {}, [-2 / (1 + math.exp(2)), 0.0, 3 / (1 + math.exp(-3))]),
        ("gelu", {}, [-2 * 0.5 * math.erfc(2 / math.sqrt(2)), 0.0, 3 * (1 - 0.5 * math.erfc(3 / math.sqrt(2)))]),
        ("quick_gelu", {}, [-2 / (1 + math.exp(3.404)), 0.0, 3 / (1 + math.exp(-5.106))]),
        ("elu", {"arguments": {"alpha": 2.0}}, [2 * (math.exp(-2) - 1), 0.0, 3.0]),
        ("hardswish", {}, [-2 / 6, 0.0, 3.0]),
        ("mish", {}, [-2 * math.tanh(math.log1p(math.exp(-2))), 0.0, 3 * math.tanh(math.log1p(math.exp(3)))]),
    ],
)
def test_rectifiers_of_one_value(kind: str, settings: dict, expected: list[float]) -> None:
    op = Activation("site", kind, 1, **{"lower": 0.0, "upper": None, "slope": None, **settings})
    got = rectified(op, torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64))
    assert got.tolist() == pytest.approx(expected, abs=1e-7)
    assert bool(rectified(op, torch.full((3,), NAN, dtype=torch.float64)).isnan().all())
