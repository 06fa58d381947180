"""Rectifiers that never bend become lines: by the states of their neurons, or by a constant input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layercollapse.compiler.backend.emit import emit
from layercollapse.compiler.ir.records import Activation, ChannelAffine, Origin
from layercollapse.compiler.passes.context import Group, PassContext
from layercollapse.compiler.passes.linearize import (
    NeuronStates,
    bending_sites,
    constant_sites,
    linearize,
    replace_neurons,
)
from layercollapse.entropy.layer import MIXED, OFF, ON, SATURATED
from networks import Model, lowered


def states(*values: int) -> NeuronStates:
    return NeuronStates(torch.tensor(values, dtype=torch.int8))


def behind(act: nn.Module, x: torch.Tensor | None = None):
    """The net of a rectifier of what it is given."""
    return lowered(Model(lambda m, x: m.act(x), act=act), torch.randn(5, 3) if x is None else x)


@pytest.mark.parametrize(
    ("act", "known", "scale", "shift", "origin"),
    [
        (nn.ReLU(), (ON, OFF, ON), [1.0, 0.0, 1.0], [0.0, 0.0, 0.0], Origin.BUFFER),
        (nn.ReLU6(), (ON, OFF, SATURATED), [1.0, 0.0, 0.0], [0.0, 0.0, 6.0], Origin.BUFFER),
        (nn.Hardtanh(-0.5, 0.25), (ON, OFF, SATURATED), [1.0, 0.0, 0.0], [0.0, -0.5, 0.25], Origin.BUFFER),
        (nn.PReLU(3, 0.25), (ON, OFF, OFF), [1.0, 0.25, 0.25], [0.0, 0.0, 0.0], Origin.TRAINED),
    ],
)
def test_states_are_lines(act, known, scale, shift, origin) -> None:
    net = behind(act)
    assert bending_sites(net) == {"act"}
    assert linearize(net, {"act": states(*known)})
    (op,) = net.ops.values()
    assert isinstance(op, ChannelAffine)
    assert (op.scale.tolist(), op.shift.tolist(), op.origin) == (scale, shift, origin)
    assert bending_sites(net) == set()


def test_neurons_with_one_value_are_noted_where_others_bend() -> None:
    net = behind(nn.ReLU6())
    known = states(MIXED, OFF, SATURATED)
    assert known.partial
    assert not states(ON, OFF).partial
    assert linearize(net, {"act": known, "of another": states(ON)})
    (op,) = net.ops.values()
    assert isinstance(op, Activation)
    assert op.fixed.nan_to_num(-1).tolist() == [-1.0, 0.0, 6.0]


def test_only_where_it_is_permitted_and_known() -> None:
    net = behind(nn.ReLU())
    assert not linearize(net, {})
    assert not linearize(net, {"act": states(ON, ON, ON)}, PassContext(omitted=lambda name: {Group.RECTIFIERS}))
    assert bending_sites(net) == {"act"}
    assert linearize(net, {"act": states(ON, ON, ON)}, PassContext(omitted=lambda name: {Group.TRIM}))


def test_a_constant_input_is_the_value_there() -> None:
    layer = nn.Linear(4, 3)
    layer.weight.data.zero_()
    layer.bias.data = torch.tensor([-1.0, 0.0, 2.0])
    model, x = nn.Sequential(layer, nn.SiLU(), nn.Linear(3, 2), nn.ReLU()).double(), torch.randn(5, 4).double()
    net = lowered(model, x)
    known = constant_sites(net)
    assert known["1"].values.tolist() == [-1.0, 0.0, 2.0]
    assert not known["1"].partial
    assert linearize(net, known)
    silu = net.ops["1"]
    assert silu.scale.tolist() == [0.0, 0.0, 0.0]
    assert silu.shift.tolist() == pytest.approx(nn.functional.silu(torch.tensor([-1.0, 0.0, 2.0])).tolist())
    torch.testing.assert_close(emit(net.copy())(x), model(x), rtol=0, atol=1e-12)
    layer.weight.data[0, 0] = 1.0
    assert "1" not in constant_sites(lowered(model, x))


@pytest.mark.parametrize("maps", [False, True])
def test_steady_neurons_get_their_line_and_the_others_are_computed(maps: bool) -> None:
    x = torch.randn(4, 3, 5, 5).double() if maps else torch.randn(9, 3).double()
    net = behind(nn.ReLU(), x)
    replace_neurons(net, {"act": states(MIXED, ON, OFF)})
    got, expected = emit(net)(x), x.clone()
    expected[:, 0] = x[:, 0].relu()
    expected[:, 2] = 0  # as if it had been off
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
