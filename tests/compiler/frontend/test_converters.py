"""The operations that collapse reads beside layers and rectifiers: on small networks, compared in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import layercollapse as lc
from layercollapse.compiler.backend.modules import ChannelAffine


class Model(nn.Module):
    """A function as a model, with its layers."""

    def __init__(self, function, **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def agrees_exactly(model: nn.Module, x: torch.Tensor) -> lc.CollapseResult:
    """Collapse without a report, and compare in float64, also for another batch."""
    result = lc.collapse(model.eval(), x, None, cost="macs")
    for batch in (x, torch.cat([x, -2 * x, 3 * x])):
        torch.testing.assert_close(result.model(batch), model(batch), atol=1e-10, rtol=1e-10)
    assert result.after.macs <= result.before.macs
    assert result.after.parameters <= result.before.parameters
    return result


NUMBERS = {
    "product": lambda x: 2 * x,
    "quotient": lambda x: x / 3,
    "sum": lambda x: x + 0.5,
    "difference": lambda x: x - 0.5,
    "reversed difference": lambda x: 1 - x,
    "negative": lambda x: -x,
    "alpha": lambda x: torch.sub(x, 0.25, alpha=3),
    "several": lambda x: 1 - (2 * x + 3) / 4,
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_join_the_layers_beside_them(name: str) -> None:
    torch.manual_seed(0)
    function = NUMBERS[name]
    model = Model(lambda m, x: m.b(function(m.a(function(x)))), a=nn.Linear(3, 4), b=nn.Conv1d(5, 2, 1)).double()
    result = agrees_exactly(model, torch.randn(2, 5, 3).double())
    assert not any(node.op == "call_function" for node in result.model.graph.nodes)
    # What no layer can take stays arithmetic with numbers.
    left = agrees_exactly(
        Model(lambda m, x: torch.softmax(function(m.a(torch.relu(function(x)))), 1), a=nn.Softmax(1)),
        torch.randn(2, 5).double(),
    )
    assert left.after.parameters == 0


@pytest.mark.parametrize("sign", [-1, 0.5])
def test_differences_and_weighted_sums_of_tensors_merge_like_sums(sign: float) -> None:
    torch.manual_seed(0)

    def forward(m, x):
        return m.b(torch.sub(m.a(x), x, alpha=-sign) if sign > 0 else x - m.a(x))

    model = Model(forward, a=nn.Conv2d(3, 3, 3, padding=1), b=nn.Conv2d(3, 2, 1)).double()
    result = agrees_exactly(model, torch.randn(2, 3, 5, 6).double())
    assert [type(m) for m in result.model.modules()][1:] == [nn.Conv2d]


def test_a_difference_that_stays_is_one_operation() -> None:
    model = Model(lambda m, x: torch.relu(x) - torch.sigmoid(x) * 0.5, a=nn.ReLU())
    result = lc.collapse(model, torch.randn(2, 5), None)
    called = [node.target for node in result.model.graph.nodes if node.op == "call_function"]
    assert called.count(torch.ops.aten.add.Tensor) == 1
    assert result.after.parameters == 0


def test_a_parameter_of_one_element_stays_one() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.gate = nn.Linear(3, 3), nn.Parameter(torch.tensor([0.5]))

        def forward(self, x):
            return torch.softmax(self.gate * torch.relu(self.a(x)), 1)

    result = agrees_exactly(Gate().double(), torch.randn(2, 5, 3).double())
    assert sorted(p.numel() for p in result.model.parameters()) == [1, 3, 9]


class Fork(nn.Module):
    """Two layers side by side over the channels, and one behind them."""

    def __init__(self, a: nn.Module, b: nn.Module, c: nn.Module, first: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.a, self.b, self.c = first or nn.Identity(), a, b, c

    def forward(self, x):
        x = self.first(x)
        return self.c(torch.cat([self.a(x), self.b(x)], 1))


def test_layers_side_by_side_in_a_concatenation_are_one() -> None:
    torch.manual_seed(0)
    one = Fork(nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()).double()
    result = agrees_exactly(one, torch.randn(2, 3, 5, 6).double())
    assert [type(m) for m in result.model.modules()][1:] == [nn.Conv2d, nn.ReLU]
    two = Fork(nn.Conv2d(3, 2, 1), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()).double()  # 3×3 for both is more work
    result = agrees_exactly(two, torch.randn(2, 3, 5, 6).double())
    assert result.after.macs == result.before.macs


def test_a_layer_over_a_concatenation_merges_with_its_parts() -> None:
    torch.manual_seed(0)
    model = Fork(nn.Conv2d(3, 8, 3, padding=1), nn.Identity(), nn.Conv2d(11, 2, 1)).double()
    result = agrees_exactly(model, torch.randn(2, 3, 5, 6).double())
    assert [type(m) for m in result.model.modules()][1:] == [nn.Conv2d]  # 3×3, from 3 to 2 channels


def sizes(model: nn.Module) -> list[tuple[int, int]]:
    """Output and input channels of the convolutions."""
    return sorted((m.out_channels, m.in_channels) for m in model.modules() if isinstance(m, nn.Conv2d))


def test_constants_and_unread_channels_of_a_concatenation() -> None:
    torch.manual_seed(0)
    model = Fork(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU()),
        nn.Conv2d(9, 2, 3),
    ).double()
    model.a[0].weight.data[1] = 0  # a constant
    model.c.weight.data[:, 6] = 0  # nothing reads the third of b
    result = agrees_exactly(model, torch.randn(2, 3, 5, 6).double())
    assert sizes(result.model) == [(2, 7), (3, 3), (4, 3)]
    model.c.weight.data[:, :4] = 0  # nothing reads a
    result = agrees_exactly(model, torch.randn(2, 3, 5, 6).double())
    assert sizes(result.model) == [(2, 4), (4, 3)]


def test_scales_on_both_sides_of_a_concatenation() -> None:
    torch.manual_seed(0)
    norms = [nn.BatchNorm1d(n) for n in (4, 4, 8)]
    for norm in norms:
        norm.running_mean.normal_()
        norm.weight.data.normal_()
    before = Fork(norms[0], norms[1], nn.Linear(8, 2), first=nn.ReLU()).double()
    behind = Fork(nn.Linear(3, 4), nn.Linear(3, 4), nn.Sequential(norms[2], nn.ReLU())).double()
    for model, inputs in ((before, 4), (behind, 3)):
        result = agrees_exactly(model, torch.randn(2, inputs).double())
        assert not any(isinstance(m, ChannelAffine) for m in result.model.modules())


def test_rectifiers_behind_a_concatenation_are_bounded() -> None:
    model = Fork(nn.ReLU(), nn.Sigmoid(), nn.Sequential(nn.ReLU(), nn.Linear(8, 2)))
    result = lc.collapse(model, torch.randn(2, 4), None)
    assert [site.status for site in result.sites] == ["kept", "collapsed"]


TRANSPOSED = [
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    {"kernel_size": 3, "stride": 3, "padding": 2, "dilation": 2, "groups": 2},
    {"kernel_size": 1},
    {"kernel_size": 4, "groups": 4},
]


@pytest.mark.parametrize("window", TRANSPOSED, ids=str)
@pytest.mark.parametrize("dims", [pytest.param(1, marks=pytest.mark.long), 2, pytest.param(3, marks=pytest.mark.long)])
def test_transposed_convolutions(dims: int, window: dict, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kind, point = ((nn.ConvTranspose1d, nn.Conv1d), (nn.ConvTranspose2d, nn.Conv2d), (nn.ConvTranspose3d, nn.Conv3d))[
        dims - 1
    ]
    sizes = (5, 4, 3)[:dims]
    x = torch.randn(2, 3, *sizes).double()

    def check(model: nn.Module, layers: int) -> None:
        model = model.double()
        result = agrees_exactly(model, x)
        assert sum(p.ndim > 1 for p in result.model.parameters()) == layers
        other = torch.randn(1, 3, *(size + 2 for size in sizes)).double()
        torch.testing.assert_close(result.model(other), model(other), atol=1e-10, rtol=1e-10)
        result.save(tmp_path)
        assert torch.equal(lc.load(tmp_path)(x), result.model(x))

    up = kind(4, 8, **({"groups": 1} | window)) if window.get("groups") != 4 else kind(4, 4, **window)
    relu = nn.ReLU()
    # It stays as it is; a scale and layers that read one position join it; constants meet its border.
    check(nn.Sequential(point(3, 4, 3, padding=1), relu, up, nn.ReLU()), 2)
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1](up.out_channels)
    norm.running_mean.normal_()
    layers = 3 if window.get("groups") == 4 else 2  # a dense layer for a depthwise one is more work
    check(nn.Sequential(point(3, 4, 3, padding=1), relu, up, norm, point(up.out_channels, 2, 1)), layers)
    wide = kind(3, 3, 2, stride=2)
    check(nn.Sequential(point(3, 3, 1), wide, nn.ReLU()), 2)  # the bias of the first is a map behind the second
    first = point(3, 4, 1)
    first.weight.data[1:] = 0
    first.bias.data[1] = 1.0
    check(nn.Sequential(first, nn.ReLU(), kind(4, 2, **{**window, "groups": 1})), 2)
    first.weight.data.zero_()
    check(nn.Sequential(first, nn.ReLU(), kind(4, 2, **{**window, "groups": 1})), window["kernel_size"] > 1)


def test_bounds_of_a_transposed_convolution() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 3, stride=2), nn.ReLU(), nn.Conv2d(3, 2, 1)).double()
    model[0].weight.data.abs_()
    x = torch.rand(2, 2, 4, 5).double() + 1
    for bias, status in ((0.0, "collapsed"), (-0.01, "kept")):  # between the pixels there is only the bias
        model[0].bias.data.fill_(bias)
        result = lc.collapse(model, x, None, box=(1.0, 2.0))
        assert result.sites[0].status == status
        assert result.max_abs_error < 1e-10


class Normed(nn.Module):
    """A layer norm read by one or two linear layers, by a skip, or by a head that is tied to the embedding."""

    def __init__(self, read: str, bias: bool = True) -> None:
        super().__init__()
        self.read = read
        self.embed, self.norm = nn.Embedding(9, 4), nn.LayerNorm(4, bias=bias)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
        nn.init.normal_(self.norm.weight)
        if bias:
            nn.init.normal_(self.norm.bias)
        if read == "tied":
            self.b.weight = self.embed.weight

    def forward(self, x):
        y = self.norm(self.embed(x))
        if self.read == "two":
            return torch.relu(self.a(y)), self.b(y)
        return self.b(y) if self.read == "tied" else self.b(torch.relu(self.a(y)) + (y if self.read == "skip" else 0))


@pytest.mark.parametrize(
    ("read", "bias"), [("one", True), ("one", False), ("two", True), ("skip", True), ("tied", True)]
)
def test_the_affine_part_of_a_layer_norm(read: str, bias: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Normed(read, bias).double().eval()
    x = torch.randint(0, 9, (3, 5))
    result = lc.collapse(model, x, None, cost="macs")  # of so small a network, time decides nothing twice alike
    torch.testing.assert_close(result.model(x), model(x), atol=1e-12, rtol=1e-12)
    assert any(name.startswith("norm") for name, _ in result.model.named_parameters()) == (read in ("skip", "tied"))
    assert result.after.parameters <= result.before.parameters + (9 if read == "two" else 0)  # b gets a bias
    result.save(tmp_path)
    torch.testing.assert_close(lc.load(tmp_path)(x), result.model(x))


@pytest.mark.parametrize("act", [nn.RReLU(0.1, 0.3), nn.Threshold(0, 0), Model(lambda m, x: x.clamp(0, 2.5))])
@pytest.mark.parametrize("shift", [-9.0, 9.0, 0.0])
def test_rectifiers_written_otherwise(act: nn.Module, shift: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), act, nn.Linear(4, 2)).double().eval()
    model[0].bias.data += shift
    x = torch.rand(50, 3).double() * 2 - 1
    with torch.no_grad(), lc.EntropyProbe(model) as probe:
        model(x)
    result = lc.collapse(model, x, probe.report())
    assert result.max_abs_error < 1e-12
    assert len(result.collapsed) == (1 if shift else 0)
    result.save(tmp_path)
    assert torch.equal(lc.load(tmp_path)(x), result.model(x))


class Made(nn.Module):
    """Layers without modules of their own, whose weights are computed; the third is a parameter as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.v, self.w = (nn.Parameter(torch.randn(4, 4)) for _ in range(3))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x):
        x = torch.relu(nn.functional.linear(x, 2 * self.v, 2 * self.bias))
        x = torch.relu(nn.functional.linear(x, self.w.abs(), 3 * self.bias))
        return nn.functional.linear(x, self.weight)


def test_computed_weights_of_one_module_are_kept_apart() -> None:
    torch.manual_seed(0)
    agrees_exactly(nn.Sequential(Made(), nn.ReLU(), Made()).double(), torch.randn(2, 4).double())
    shared = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    with nn.utils.parametrize.cached():
        result = agrees_exactly(nn.Sequential(shared, nn.ReLU(), shared).double(), torch.randn(2, 4).double())
    assert sum(p.numel() for p in result.model.parameters()) == 20


def test_a_factor_and_a_summand_of_one_element_over_maps() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.more = nn.Parameter(torch.tensor([0.5])), nn.Parameter(torch.tensor([0.25]))

        def forward(self, x):
            return torch.softmax(self.gate * torch.relu(x) + self.more, 1)

    agrees_exactly(Gate().double(), torch.randn(2, 3, 4, 5).double())


def test_a_view_fits_maps_with_their_channels_last_in_memory() -> None:
    class Inplace(nn.Module):
        def forward(self, x):
            return x.relu_().flatten(1)  # written out, as it works on the input: flatten becomes a view

    x = torch.randn(2, 3, 4, 5)
    result = lc.collapse(Inplace(), x.clone(), None, cost="macs")
    last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(result.model(last.clone()), Inplace()(last.clone()))


class Mixed(nn.Module):
    """Two layers and a rectifier whose neurons are all on, in bfloat16, and a head in float32."""

    def __init__(self, autocast: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head, self.autocast = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(4, 3), autocast
        self.a.bias.data += 8
        if not autocast:
            self.a, self.b = self.a.bfloat16(), self.b.bfloat16()

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            x = self.b(torch.relu(self.a(x)))
        return self.head(x.float())


@pytest.mark.parametrize("autocast", [False, True])
def test_layers_stay_in_the_dtype_that_they_compute_in(autocast: bool) -> None:
    model, x = Mixed(autocast).eval(), torch.rand(4, 6, dtype=torch.float32 if autocast else torch.bfloat16)
    with torch.no_grad(), lc.EntropyProbe(model) as probe:
        model(x)
    result = lc.collapse(model, x, probe.report(), tolerance=0.1, cost="macs")
    assert [site.status for site in result.sites] == ["collapsed"]
    assert result.after.depth == 2  # no layer merges with one of another dtype
    assert sorted(str(p.dtype) for p in result.model.parameters()) == ["torch.bfloat16"] * 2 + ["torch.float32"] * 2
    torch.testing.assert_close(result.model(x), model(x), atol=0.05, rtol=0.02)
    assert result.model(x).dtype == torch.float32


class Excite(nn.Module):
    """A squeeze and excitation between two convolutions."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.reduce, self.expand, self.gate = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), gate

    def forward(self, x):
        x = self.first(x)
        return self.last(x * self.gate(self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True))))))


@pytest.mark.parametrize("gate", [nn.Sigmoid(), nn.Hardsigmoid(), nn.Tanh(), nn.Softplus()])
@pytest.mark.parametrize("dead", ["reduce", "expand"])
def test_a_gate_that_reads_nothing_is_a_scale(gate: nn.Module, dead: str) -> None:
    torch.manual_seed(0)
    model = Excite(gate).double()
    nn.init.zeros_(model.get_submodule(dead).weight)
    result = agrees_exactly(model, torch.randn(2, 3, 6, 5).double())
    assert [type(m) for m in result.model.modules()][1:] == [nn.Conv2d]
    one = torch.randn(2, 3, 3, 3).double()  # a map of one pixel looks like its gate
    model(one)
    small = agrees_exactly(model, one)
    larger = torch.randn(2, 3, 6, 5).double()
    torch.testing.assert_close(small.model(larger), model(larger), atol=1e-10, rtol=1e-10)


def test_channels_that_a_gate_multiplies_go_with_it() -> None:
    torch.manual_seed(0)
    model = Excite(nn.Sigmoid()).double()
    model.first.weight.data[:3], model.first.bias.data[:3] = 0, 0  # zero times any gate
    result = agrees_exactly(model, torch.randn(2, 3, 6, 5).double())
    assert result.model.expand.weight.shape == (5, 4, 1, 1)
    assert result.model.first.weight.shape == (5, 3, 3, 3)


def test_a_gated_linear_unit_loses_the_neurons_of_either_factor() -> None:
    torch.manual_seed(0)
    layers = {"up": nn.Linear(5, 8, bias=False), "gate": nn.Linear(5, 8, bias=False), "down": nn.Linear(8, 5)}
    layers["up"].weight.data[:2] = 0
    layers["gate"].weight.data[1:4] = 0
    model = Model(lambda m, x: x + m.down(F.silu(m.gate(x)) * m.up(x)), **layers).double()
    result = agrees_exactly(model, torch.randn(2, 6, 5).double())
    assert result.model.up.weight.shape == result.model.gate.weight.shape == (4, 5)
    assert result.sites[0].removed == 4


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "nearest-exact"])
def test_constants_and_dead_channels_pass_an_upsampling(mode: str) -> None:
    torch.manual_seed(0)
    layers = {"skip": nn.Conv2d(3, 4, 1), "up": nn.Conv2d(3, 6, 1), "last": nn.Conv2d(6, 2, 3)}
    layers["up"].weight.data[:4] = 0
    layers["last"].weight.data[:, 4] = 0

    def forward(m, x):
        return m.last(torch.relu(F.interpolate(m.up(F.max_pool2d(x, 2)), scale_factor=2, mode=mode)))

    result = agrees_exactly(Model(forward, **layers).double(), torch.randn(2, 3, 8, 6).double())
    assert result.model.up.weight.shape == (1, 3, 1, 1)


def test_a_scale_beside_a_tied_head_does_not_copy_the_embedding() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(30, 8), nn.Linear(8, 30, bias=False)
            self.head.weight, self.gain = self.table.weight, nn.Parameter(torch.rand(8) + 0.5)

        def forward(self, ids):
            x = self.table(ids)
            return 0.125 * self.head(self.gain * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))

    model = Tied().double().eval()
    ids = torch.arange(12).reshape(2, 6)
    result = lc.collapse(model, ids, None, cost="macs")
    torch.testing.assert_close(result.model(ids + 3), model(ids + 3), atol=1e-10, rtol=1e-10)
    assert result.after.parameters == result.before.parameters


class Gated(nn.Module):
    """One gate for all features of a position, or a gate of the input."""

    def __init__(self, gates: int) -> None:
        super().__init__()
        self.gate, self.other, self.head = nn.Linear(4, gates), nn.Linear(4, 4), nn.Linear(4, 3)
        nn.init.zeros_(self.gate.weight)

    def forward(self, x):
        return self.head(self.other(x) + x * self.gate(x))


@pytest.mark.parametrize("value", [0.0, 0.5])
@pytest.mark.parametrize("gates", [1, 4])
@pytest.mark.parametrize("example", [torch.zeros, torch.randn])
def test_constant_gates(example: Callable[..., torch.Tensor], gates: int, value: float) -> None:
    """One constant for all channels says nothing along them; an example of zeros would not show it."""
    model = Gated(gates).double()
    nn.init.constant_(model.gate.bias, value)
    for size in ((2, 5, 4), (6, 4)):
        result = lc.collapse(model, example(size).double(), None, cost="macs")
        assert {p.dtype for p in result.model.parameters()} == {torch.float64}
        x = torch.randn(size).double()
        torch.testing.assert_close(result.model(x), model(x), rtol=0, atol=1e-12)
