"""Collapse on small networks whose result can be said beforehand."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import layercollapse as lc
from layercollapse.compiler.backend.modules import ConstantMap
from layercollapse.graph import agreement as verify
from layercollapse.zoo.models import build
from networks import Model, report_on

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


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
    # By latency, an H100 keeps all channels of some layers.
    result = lc.collapse(model, x[:1], report_on(model, x), data=[x], cost="macs")
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


class Counting(nn.Module):
    """Counts its calls, and adds the number to its output or not."""

    def __init__(self, adds: bool) -> None:
        super().__init__()
        self.linear, self.adds = nn.Linear(4, 4), adds
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return torch.relu(self.linear(x)) + (self.calls if self.adds else 0)


def test_a_model_with_a_memory_is_refused() -> None:
    x = torch.randn(3, 4)
    with pytest.raises(lc.LayerCollapseError, match=r"do not depend on earlier calls, .* reads: calls"):
        lc.collapse(Counting(adds=True), x, None)
    model = Counting(adds=False)
    torch.testing.assert_close(lc.collapse(model, x, None).model(x), model(x))


def agrees(model: nn.Module, *x: torch.Tensor, tolerance: float = 1e-5) -> lc.CollapseResult:
    """Collapse by what the probe sees on these inputs, and compare there."""
    model.eval()
    with torch.no_grad(), lc.EntropyProbe(model) as probe:
        expected = model(*(t.clone() for t in x))
    result = lc.collapse(model, x, probe.report(), tolerance=tolerance, cost="macs")
    torch.testing.assert_close(result.model(*x), expected, atol=tolerance, rtol=tolerance)
    return result


@pytest.mark.parametrize(("length", "features"), [(8, 8), (7, 5)])
def test_a_batch_norm_over_positions_stays_apart_from_a_linear_layer(length: int, features: int) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(length)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    agrees(nn.Sequential(nn.Linear(4, features), norm, nn.ReLU(), nn.Linear(features, 3)), torch.randn(3, length, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_rectifier_that_becomes_a_scale_keeps_the_dtype(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Model(
        lambda m, x: m.out(m.two(F.leaky_relu(m.one(x) - 9, 0.3))),
        one=nn.GroupNorm(2, 4),
        two=nn.GroupNorm(2, 4),
        out=nn.Conv2d(4, 2, 1),
    )
    result = agrees(model.to(dtype), torch.randn(2, 4, 5, 5, dtype=dtype), tolerance=0.1)
    assert result.collapsed == ("forward",)
    assert {p.dtype for p in result.model.parameters()} == {dtype}


class MaskOfConstants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        nn.init.zeros_(self.a.weight)

    def forward(self, x):
        x = self.a(x)
        return self.b(x * (x != 0))


def test_a_constant_times_a_mask_keeps_the_dtype() -> None:
    torch.manual_seed(0)
    model, x = MaskOfConstants().double().eval(), torch.randn(5, 4).double()
    torch.testing.assert_close(lc.collapse(model, x, cost="macs").model(2 * x), model(2 * x))


class SumWithMask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        nn.init.zeros_(self.a.weight)

    def forward(self, x):
        x = self.a(x)
        return self.c(torch.relu(self.b((x != 0) + x)))


def test_a_linear_layer_behind_a_sum_with_a_mask_does_not_read_the_mask() -> None:
    torch.manual_seed(0)
    model, x = SumWithMask().double().eval(), torch.randn(16, 4).double()
    with lc.EntropyProbe(model) as probe:
        model(x)
    torch.testing.assert_close(lc.collapse(model, x, probe.report(), cost="macs").model(2 * x), model(2 * x))


def test_several_inputs_without_data() -> None:
    model = Model(lambda m, x, y: m.b(torch.relu(m.a(x) + y)), a=nn.Linear(4, 3), b=nn.Linear(3, 2))
    assert agrees(model, torch.randn(5, 4), torch.randn(5, 3)).samples == 5


def test_a_model_that_works_in_place_on_its_input() -> None:
    model = Model(lambda m, x: m.a(x.add_(1)), a=nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)))
    x = torch.randn(5, 4)
    before = x.clone()
    agrees(model, x)
    assert torch.equal(x, before)


class Names(nn.Module):
    """Names that a ModuleDict or a module may have, and a GraphModule may not."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.graph, self.meta = nn.Linear(4, 4), nn.ReLU(), nn.Parameter(torch.ones(4))
        self.parts = nn.ModuleDict({"in": nn.Linear(4, 4), "class": nn.ReLU()})

    def forward(self, x):
        return self.parts["class"](self.parts["in"](self.graph(self.code(x * self.meta))))


def test_names_that_python_or_torch_reserve(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    result = agrees(Names(), x)
    result.save(tmp_path)
    assert torch.equal(lc.load(tmp_path)(x), result.model(x))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mid, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(torch.relu(self.mid(self.embed(x))))


@pytest.mark.parametrize("shift", [0.0, 40.0])
def test_a_head_tied_to_an_embedding(shift: float) -> None:
    torch.manual_seed(0)
    model, x = Tied(), torch.randint(0, 9, (5, 6))
    model.mid.bias.data += shift
    result = agrees(model, x, tolerance=1e-4)
    assert result.collapsed == (("forward",) if shift else ())
    if not shift:  # the head has not changed, so it is still the embedding's
        assert result.after.parameters == result.before.parameters


class SharedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(4)
        self.a = nn.Sequential(nn.Linear(4, 4), norm, nn.ReLU())
        self.b = nn.Sequential(nn.Linear(4, 4), norm, nn.ReLU())

    def forward(self, x):
        return self.b(self.a(x))


def test_a_batch_norm_under_two_names() -> None:
    agrees(SharedNorm(), torch.randn(6, 4))


def test_complex_outputs_are_compared_in_both_parts() -> None:
    class Spectrum(nn.Module):
        def __init__(self, shift: float) -> None:
            super().__init__()
            self.linear, self.shift = nn.Linear(4, 3), shift

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            y = F.relu(self.linear(x))
            return torch.fft.fft(y), torch.complex(y, y + self.shift).conj(), y

    model, other, x = Spectrum(0.0), Spectrum(0.5), torch.randn(2, 4)
    other.load_state_dict(model.state_dict())
    assert verify.compare(model, other, x).max_abs_error == pytest.approx(0.5)
    assert lc.collapse(model, x).max_abs_error < 1e-6


def test_a_model_that_takes_any_keyword() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))

        def forward(self, **batch: torch.Tensor) -> torch.Tensor:
            return self.net(batch["x"])

    assert lc.collapse(Wrapped(), {"x": torch.randn(2, 4)}).max_abs_error < 1e-6


def test_outputs_without_a_float_and_empty_batches() -> None:
    model = Model(lambda m, x: m.a(x).argmax(-1), a=nn.Sequential(nn.Linear(4, 3), nn.ReLU()))
    x = torch.randn(5, 4)
    assert agrees(model, x).same_predictions == 5
    logits = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    assert lc.collapse(logits, x, None, data=[x, x[:0]]).samples == 5


def test_the_slopes_of_a_prelu_say_where_its_neurons_lie() -> None:
    model = nn.PReLU(3, 0.3)
    x = torch.randn(4, 3, 7) - torch.tensor([[9.0], [-9.0], [9.0]])
    assert agrees(model, x).collapsed == ("forward",)
    assert report_on(model, x)["forward"].states.tolist() == [0, 1, 0]


def test_rectifiers_of_one_value_per_sample() -> None:
    model = Model(lambda m, x: torch.relu(m.a(x).squeeze(-1)), a=nn.Linear(4, 1))
    model.a.bias.data += 20
    x = torch.randn(5, 4)
    assert "forward" not in agrees(model, x).collapsed
    assert lc.collapse(model, x, None, box=(-1.0, 1.0)).model(x[:2]).shape == (2,)


def test_wrapped_models_collapse_by_their_own_names() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(5, 4)
    model[0].bias.data += 20
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        assert lc.collapse(wrapped, x, report_on(model, x)).collapsed == ("1",)


class Pooled(nn.Module):
    """A constant map plus a pooled one: what looks alike for one pixel differs for more."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.b.weight.data.zero_()

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.c(torch.relu(self.b(h) + F.adaptive_avg_pool2d(h, 1)))


def test_an_example_of_one_pixel_does_not_hide_a_broadcast() -> None:
    model = Pooled()
    result = lc.collapse(model, torch.randn(2, 3, 1, 1), None)
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(result.model(x), model(x))


COMPUTED = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "prune with bias": lambda layer: prune.random_unstructured(
        prune.l1_unstructured(layer, "weight", 0.5), "bias", 0.5
    ),
}


@pytest.mark.parametrize("change", COMPUTED.values(), ids=COMPUTED)
def test_weights_computed_from_parameters_are_weights(change) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(72, 4)
    ).eval()
    nn.init.constant_(model[1].bias, 50.0)  # on, whatever the input
    for index in (0, 3, 5):
        change(model[index])
    x = torch.rand(2, 3, 5, 5)
    result = lc.collapse(model, x, box=(0.0, 1.0), cost="macs")
    assert result.collapsed == ("2",)
    assert (result.before.depth, result.after.depth) == (3, 1)
    assert {name.rpartition(".")[2] for name, _ in result.model.named_parameters()} == {"weight", "bias"}
    with pytest.raises(lc.LayerCollapseError, match="3 layers compute theirs in the forward pass"):
        lc.Pruner(model, x)


def test_a_weight_that_something_else_reads_stays_one_tensor() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 8)

        def forward(self, x):
            return self.table(x) @ self.table.weight.t()

    result = lc.collapse(Tied(), torch.randint(50, (2, 3)))
    assert result.after.parameters == result.before.parameters == 400


def test_frozen_parameters_stay_frozen(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2)).eval()
    model[0].requires_grad_(False)
    result = lc.collapse(model, torch.rand(2, 4))
    frozen = {name for name, parameter in result.model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"0.weight", "0.bias"}
    result.save(tmp_path)
    loaded = lc.load(tmp_path)
    assert {name for name, parameter in loaded.named_parameters() if not parameter.requires_grad} == frozen
    whole = lc.collapse(model.requires_grad_(False), torch.rand(2, 4))
    assert not any(parameter.requires_grad for parameter in whole.model.parameters())
