"""From a captured model to records: their values by hand, and nothing lost or changed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import layercollapse as lc
from layercollapse.compiler.backend.emit import emit
from layercollapse.compiler.frontend.lower import lower, written_anew
from layercollapse.compiler.ir.records import Activation, Affine, ChannelAffine, Origin
from networks import Model, Small, lowered


def test_a_convolution_a_batch_norm_and_a_rectifier_are_records() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU6())
    norm = model[1]
    norm.running_mean[:], norm.running_var[:], norm.eps = 1.0, 4.0, 0.0
    norm.weight.data, norm.bias.data = torch.tensor([2.0, 4.0, 6.0]), torch.tensor([0.0, 1.0, 0.5])
    net = lowered(model, torch.randn(1, 2, 8, 8))
    assert [type(op) for op in net.ops.values()] == [Affine, ChannelAffine, Activation]
    conv, scale, act = net.ops["0"], net.ops["1"], net.ops["2"]
    assert torch.equal(conv.weight, model[0].weight.detach().double())
    assert conv.bias.tolist() == [0.0, 0.0, 0.0]
    assert (conv.geometry.stride, conv.geometry.padding, conv.source) == ((2, 2), (1, 1), ("0.weight", None))
    assert scale.scale.tolist() == [1.0, 2.0, 3.0]  # weight / √4
    assert scale.shift.tolist() == [-1.0, -1.0, -2.5]  # bias - mean · scale
    assert (act.site, act.kind, act.lower, act.upper, act.channel_dim) == ("2", "relu6", 0.0, 6.0, 1)


def test_what_does_nothing_is_gone() -> None:
    def forward(m, x):
        a, b = m.drop(m.a(x)).chunk(2, -1)
        return torch.cat([a, b], -1).detach().contiguous()

    model = Model(forward, a=nn.Linear(4, 6), drop=nn.Dropout(0.5))
    net = lowered(model, torch.randn(3, 4))
    assert "dropout" not in str(net.graph)
    assert "detach" not in str(net.graph)


def test_who_trains_is_noted() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)).requires_grad_(False)
    model[1].requires_grad_(True)
    net = lowered(model, torch.randn(3, 4))
    assert {name: op.origin for name, op in net.ops.items()} == {
        "0": Origin.FROZEN,
        "1": Origin.TRAINED,
        "2": Origin.BUFFER,
    }
    assert net.frozen == {"0.weight", "0.bias"}
    assert net.trains
    assert not lowered(model.requires_grad_(False), torch.randn(3, 4)).trains


MODELS = {
    "small": (Small(), (2, 1, 9, 9)),
    "functional": (Model(lambda m, x: F.linear(F.gelu(m.a(x)), m.a.weight), a=nn.Linear(4, 4)), (3, 4)),
    "two outputs": (Model(lambda m, x: {"y": (m.a(x), x[..., :2]), "z": [m.a(x).sum(-1)]}, a=nn.Linear(4, 4)), (3, 4)),
    "assigned": (Model(lambda m, x: torch.slice_scatter(m.a(x), m.a(x)[:, 1:2], 1, 2, 3), a=nn.Linear(4, 4)), (3, 4)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_net_computes_what_the_model_computes(name: str) -> None:
    torch.manual_seed(0)
    model, size = MODELS[name]
    model, x = model.double().eval(), torch.randn(size).double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    made = emit(lowered(model, x))
    for batch in (x, torch.randn(5, *size[1:]).double()):
        torch.testing.assert_close(made(batch), model(batch), rtol=0, atol=1e-12)
    for parameter in made.parameters():
        parameter.data.fill_(3.0)  # of its own
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_captured_nodes_may_stay_untouched() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(5, 4)
    captured = lc.capture(model, x)
    names = written_anew(lower(captured, model))
    assert names == {"linear": "0", "linear_1": "2"}
    net = lower(captured, model, untouched={"linear"})
    assert list(written_anew(net).values()) == ["2"]
    assert set(net.tensors) == {"0.weight", "0.bias"}
    torch.testing.assert_close(emit(net)(x), model(x))
