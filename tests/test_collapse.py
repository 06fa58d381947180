"""Collapse on small networks whose result can be said beforehand."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import layercollapse as lc
from layercollapse.collapse.ir import Affine, Window
from layercollapse.collapse.merge import add, compose, mergeable
from layercollapse.collapse.modules import ConstantMap
from layercollapse.models import build

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def report_on(model: nn.Module, x: torch.Tensor) -> lc.EntropyReport:
    with torch.no_grad(), lc.EntropyProbe(model) as probe:
        model(x)
    return probe.report()


def affine(weight: torch.Tensor, bias: torch.Tensor, **window: int) -> Affine:
    dims = weight.ndim - 2
    settings = {"stride": 1, "padding": 0, "dilation": 1, **window}
    shape = Window(tuple(weight.shape[2:]), *((settings[name],) * dims for name in ("stride", "padding", "dilation")))
    return Affine(weight, bias, shape, 1, torch.float64)


def apply(op: Affine, x: torch.Tensor) -> torch.Tensor:
    w = op.window
    if not w.kernel:
        return F.linear(x, op.weight, op.bias)
    out = F.conv2d(x, op.weight, op.bias, w.stride, w.padding, w.dilation, op.groups)
    if op.plane is not None:
        ones = torch.ones_like(x[:, :1])
        out = out + F.conv2d(ones, op.plane.unsqueeze(1), None, w.stride, w.padding, w.dilation)
    return out


def test_two_linear_layers_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    model[0].weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double()
    model[0].bias.data = torch.tensor([10.0, -10.0]).double()
    model[2].weight.data = torch.tensor([[2.0, 5.0]]).double()
    model[2].bias.data = torch.tensor([0.5]).double()
    x = torch.tensor([[0.5, 0.5], [-1.0, 0.25]]).double()  # the first neuron is on, the second off
    result = lc.collapse(model, x, report_on(model, x))
    merged = next(result.model.children())
    assert torch.equal(merged.weight, torch.tensor([[2.0, 4.0]]).double())  # 2 · (1, 2)
    assert torch.equal(merged.bias, torch.tensor([20.5]).double())  # 0.5 + 2 · 10
    assert (result.before.depth, result.after.depth) == (2, 1)
    assert result.sites[0].guarantee == "empirical"
    assert "1 on, 1 off" in result.explain()


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize(
    ("k1", "s1", "d1", "p1"), [(1, 1, 1, 0), (1, 2, 1, 0), (3, 1, 1, 1), (3, 2, 1, 0), (2, 1, 2, 1)]
)
@pytest.mark.parametrize(("k2", "s2", "d2"), [(1, 1, 1), (3, 1, 1), (3, 2, 1), (2, 1, 2)])
def test_compose(k1: int, s1: int, d1: int, p1: int, k2: int, s2: int, d2: int, padding: int) -> None:
    torch.manual_seed(0)
    first = affine(torch.randn(4, 3, k1, k1).double(), torch.randn(4).double(), stride=s1, padding=p1, dilation=d1)
    second = affine(
        torch.randn(5, 4, k2, k2).double(), torch.randn(5).double(), stride=s2, padding=padding, dilation=d2
    )
    assert mergeable(first, second) == (padding == 0 or (k1 == 1 and p1 == 0))
    if mergeable(first, second):
        for size in (11, 12):
            x = torch.randn(2, 3, size, size + 3).double()
            torch.testing.assert_close(apply(compose(first, second), x), apply(second, apply(first, x)))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"k": 3, "padding": 1}, {"k": 1}),
        ({"k": 3, "padding": 1}, {"k": 5, "padding": 2}),
        ({"k": 3, "padding": 2, "dilation": 2}, {"k": 1}),
        ({"k": 3, "padding": 2, "dilation": 2}, {"k": 3, "padding": 1}),
        ({"k": 3, "padding": 1, "stride": 2}, {"k": 1, "stride": 2}),
        ({"k": 2}, {"k": 2}),
    ],
)
def test_add(one: dict, two: dict) -> None:
    torch.manual_seed(0)
    ops = []
    for settings in (dict(one), dict(two)):
        k = settings.pop("k")
        ops.append(affine(torch.randn(4, 3, k, k).double(), torch.randn(4).double(), **settings))
    merged = add(*ops)
    assert merged is not None
    for size in (7, 8):
        x = torch.randn(2, 3, size, size + 1).double()
        torch.testing.assert_close(apply(merged, x), apply(ops[0], x) + apply(ops[1], x))


def test_add_refuses_windows_of_different_sizes() -> None:
    same, valid = (affine(torch.ones(1, 1, 3, 3).double(), torch.zeros(1).double(), padding=p) for p in (1, 0))
    assert add(same, valid) is None


def pruned_resnet() -> nn.Module:
    torch.manual_seed(0)
    model = build("resnet18", num_classes=10, in_channels=1, image_size=28, width=8).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.bias.data.normal_(0, 0.3)
    model.layer1[0].conv1.weight.data.zero_()  # behind an identity: both convolutions go
    model.layer2[0].conv1.weight.data.zero_()  # behind a projection: one remains on the longest path
    model.layer4[1].conv1.weight.data[::3] = 0  # constant channels behind a padding
    return model


@pytest.mark.parametrize("device", DEVICES)
def test_dead_branches_of_a_resnet(device: str) -> None:
    model = pruned_resnet().to(device)
    x = torch.randn(8, 1, 28, 28, device=device)
    result = lc.collapse(model, x[:1], report_on(model, x), data=[x])
    assert result.before.depth - result.after.depth == 3
    assert result.max_abs_error < 1e-5
    assert result.same_predictions == 8
    assert {s.name: s.guarantee for s in result.sites}["layer1.0.relu"] == "exact"
    assert isinstance(result.model.get_submodule("layer1.0.conv2"), ConstantMap)
    narrowed = result.model.get_submodule("layer4.1.conv1").out_channels
    assert narrowed < model.layer4[1].conv1.out_channels - 10
    assert all(p.device.type == device for p in result.model.parameters())
    for size in (14, 27, 33, 40):  # the border is right for other sizes than the example's
        other = torch.randn(2, 1, size, size, device=device)
        with torch.no_grad():
            torch.testing.assert_close(result.model(other), model(other), atol=1e-5, rtol=1e-5)


def test_the_model_is_not_changed_and_the_result_is_its_own() -> None:
    model = pruned_resnet().train()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(4, 1, 28, 28)
    result = lc.collapse(model, x, None, data=[x])
    for parameter in result.model.parameters():
        parameter.data.fill_(7.0)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_result_trains() -> None:
    model = pruned_resnet()
    x = torch.randn(4, 1, 28, 28)
    collapsed = copy.deepcopy(lc.collapse(model, x, None).model).train()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in collapsed.modules())
    collapsed(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in collapsed.parameters())


def test_a_constant_map_follows_its_parameters() -> None:
    torch.manual_seed(0)
    module = ConstantMap(2, [[[3, 3], [1, 1], [1, 1], [1, 1]]])
    for change in (lambda: None, module.weight.data.normal_, lambda: module.bias.data.add_(1), module.double):
        change()
        for size in ((5, 6), (4, 4), (5, 6)):
            x = torch.zeros(3, 7, *size, dtype=module.bias.dtype)
            expected = F.conv2d(torch.ones(1, 1, *size).to(x), module.weight, module.bias, padding=1).expand(
                3, -1, -1, -1
            )
            for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
                with mode():
                    assert torch.equal(module(x), expected)
    assert module(x).requires_grad
    assert copy.deepcopy(module)._last is None


def test_dtype_is_kept() -> None:
    model = pruned_resnet().bfloat16()
    x = torch.randn(4, 1, 28, 28, dtype=torch.bfloat16)
    result = lc.collapse(model, x, None, tolerance=0.1)
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}


class Twice(nn.Module):
    """One layer called twice, and one tied to another name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head.weight = self.a.weight

    def forward(self, x):
        return self.head(torch.relu(self.a(torch.relu(self.a(x)))))


def test_shared_weights_stay_shared(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model, x = Twice(), torch.randn(64, 4)
    result = lc.collapse(model, x, report_on(model, x))
    assert not result.collapsed
    assert result.after.parameters == result.before.parameters
    result.save(tmp_path)
    assert sum(p.numel() for p in lc.load(tmp_path).parameters()) == result.after.parameters


class Containers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)
        self.token = nn.Parameter(torch.ones(4))

    def forward(self, x, scale=None):
        x = x + self.token
        h = torch.relu(self.a(x))
        return {"logits": self.b(h), "hidden": [h, (x * 2, None)]}


def test_nested_outputs_and_keywords() -> None:
    model, x = Containers(), torch.randn(5, 4)
    result = lc.collapse(model, {"x": x}, report_on(model, x))
    expected, got = model(x), result.model(x=x)
    torch.testing.assert_close(got["logits"], expected["logits"])
    torch.testing.assert_close(got["hidden"][1][0], expected["hidden"][1][0])
    assert got["hidden"][1][1] is None
    assert isinstance(result.model.token, nn.Parameter)


def test_data_based_collapse_that_fails_on_other_data_is_rolled_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].bias.data.fill_(3.0)
    near = 0.1 * torch.randn(64, 4)
    report = report_on(model, near)
    assert report["1"].collapsible
    result = lc.collapse(model, near, report, data=[100 * near])
    assert result.collapsed == ()
    assert result.max_abs_error < 1e-4
    assert "the outputs differ by" in result.explain()


def test_errors() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(8, 4)
    report = report_on(model, x)
    other = report_on(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), x)
    with pytest.raises(lc.LayerCollapseError, match="mode: expected 'exact', got 'fast'"):
        lc.collapse(model, x, report, mode="fast")
    with pytest.raises(lc.LayerCollapseError, match="tolerance"):
        lc.collapse(model, x, report, tolerance=-1)
    with pytest.raises(lc.LayerCollapseError, match=r"3 neurons of relu at '1', got 5"):
        lc.collapse(model, x, other)
    with pytest.raises(lc.LayerCollapseError, match="report: expected an EntropyReport"):
        lc.collapse(model, x, {"1": 0.0})
    with pytest.raises(lc.LayerCollapseError, match="data: expected at least one batch"):
        lc.collapse(model, x, report, data=[])
    model[0].weight.data[0, 0] = float("nan")
    with pytest.raises(lc.LayerCollapseError, match=r"NaN or infinity in '0.weight'"):
        lc.collapse(model, x, report)
