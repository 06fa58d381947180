"""Random networks with random linear sites: the collapsed model must equal the original, every time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

import layercollapse as lc

KINDS = ("relu", "relu6", "hardtanh", "leaky_relu", "prelu")
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}


@dataclass(frozen=True)
class Layer:
    """A convolution (or linear layer) with what follows it."""

    channels: int = 3
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    bias: bool = True
    norm: bool = False
    kind: str | None = "relu"  # the rectifier
    states: str | None = None  # "on", "off", "saturated" or "any": force the site to be linear
    pruned: str = "some"  # of the weights: "none", "some", "rows", "all"


@dataclass(frozen=True)
class Block:
    """Layers with a way around them: None, "identity" or "projection"; and a rectifier after the sum."""

    layers: tuple[Layer, ...]
    skip: str | None = None
    after: Layer = Layer(kind=None)
    pool: str | None = None


@dataclass(frozen=True)
class Spec:
    dims: int
    blocks: tuple[Block, ...]
    head: str  # "mean" or "flatten"
    tail: tuple[Layer, ...]
    seed: int


def conv(dims: int, inputs: int, layer: Layer) -> nn.Module:
    if dims == 0:
        return nn.Linear(inputs, layer.channels, bias=layer.bias or not layer.norm)
    kind = (nn.Conv1d, nn.Conv2d)[dims - 1]
    return kind(
        inputs,
        layer.channels,
        layer.kernel,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        bias=layer.bias or not layer.norm,
    )


class Site(nn.Module):
    """A rectifier; before the first forward pass, `bias` is moved so that the site is linear if it shall be."""

    def __init__(self, layer: Layer, channels: int) -> None:
        super().__init__()
        self.layer = layer
        self.act = {
            None: nn.Identity,
            "relu": lambda: nn.ReLU(inplace=True),
            "relu6": nn.ReLU6,
            "hardtanh": lambda: nn.Hardtanh(-0.5, 0.75),
            "leaky_relu": lambda: nn.LeakyReLU(0.2),
            "prelu": lambda: nn.PReLU(channels, 0.3),
        }[layer.kind]()
        self.bias: Tensor | None = None

    def settle(self, z: Tensor, generator: torch.Generator) -> Tensor:
        if self.layer.states is None or self.layer.kind is None or self.bias is None:
            return z
        lower, upper = {"relu6": (0.0, 6.0), "hardtanh": (-0.5, 0.75)}.get(self.layer.kind, (0.0, None))
        dims = [d for d in range(z.ndim) if d != 1]
        low, high = z.amin(dims), z.amax(dims)
        shifts = {"on": lower + 0.01 - low, "off": lower - 0.01 - high}
        if upper is not None:
            shifts["saturated"] = upper + 0.01 - low
            if bool((high - low > upper - lower - 0.02).any()):
                del shifts["on"]
        names = list(shifts) if self.layer.states not in shifts else [self.layer.states]
        pick = torch.randint(len(names), (len(low),), generator=generator)
        shift = torch.stack([shifts[name] for name in names])[pick, torch.arange(len(low))]
        self.bias.data += shift
        return z + shift.reshape(1, -1, *[1] * (z.ndim - 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


class Stage(nn.Module):
    """A Layer as modules: convolution, batch norm or not, rectifier or not."""

    def __init__(self, dims: int, inputs: int, layer: Layer) -> None:
        super().__init__()
        self.conv = conv(dims, inputs, layer)
        self.norm = (nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d)(layer.channels) if layer.norm else nn.Identity()
        self.site = Site(layer, layer.channels)
        self.site.bias = self.norm.bias if layer.norm else self.conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.site(self.norm(self.conv(x)))


class Residual(nn.Module):
    def __init__(self, dims: int, inputs: int, block: Block) -> None:
        super().__init__()
        self.block, self.dims = block, dims
        channels, stages = inputs, []
        for layer in block.layers:
            stages.append(Stage(dims, channels, layer))
            channels = layer.channels
        self.stages = nn.ModuleList(stages)
        self.projection = None
        if block.skip == "projection":
            stride = 1
            for layer in block.layers:
                stride *= layer.stride
            plain = Layer(channels, stride=stride, kind=None, norm=block.after.norm)
            self.projection = Stage(dims, inputs, plain)
        self.after = Site(block.after, channels)
        self.after.bias = stages[-1].norm.bias if block.layers[-1].norm else stages[-1].conv.bias
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for stage in self.stages:
            y = stage(y)
        if self.block.skip:
            y = y + (x if self.projection is None else self.projection(x))
        y = self.after(y)
        if self.block.pool == "avg" and min(y.shape[2:]) > 1:
            y = F.avg_pool2d(y, 2) if self.dims == 2 else F.avg_pool1d(y, 2)
        if self.block.pool == "max" and min(y.shape[2:]) > 1:
            y = F.max_pool2d(y, 2, stride=1) if self.dims == 2 else F.max_pool1d(y, 2, stride=1)
        return y


class Network(nn.Module):
    def __init__(self, spec: Spec, x: Tensor) -> None:
        super().__init__()
        self.spec = spec
        channels, blocks = x.shape[1], []
        for block in spec.blocks:
            blocks.append(Residual(spec.dims, channels, block))
            channels = blocks[-1].channels
        self.blocks = nn.ModuleList(blocks)
        with torch.no_grad():
            features = self.features(x).shape[1]
        stages = []
        for layer in spec.tail:
            stages.append(Stage(0, features, layer))
            features = layer.channels
        self.tail = nn.ModuleList(stages)

    def features(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        if x.ndim == 2:
            return x
        return x.mean(tuple(range(2, x.ndim))) if self.spec.head == "mean" else torch.flatten(x, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        for stage in self.tail:
            x = stage(x)
        return x


def build(spec: Spec, dtype: torch.dtype) -> tuple[Network, Tensor]:
    generator = torch.Generator().manual_seed(spec.seed)
    x = torch.rand(4, 3, *(7, 6)[: spec.dims], generator=generator, dtype=dtype) * 2 - 1
    torch.manual_seed(spec.seed)
    network = Network(spec, x.float()).to(dtype).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            module.weight.data.uniform_(-1.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.5, 0.5, generator=generator)
        if isinstance(module, Stage):
            weight, pruned = module.conv.weight.data, module.site.layer.pruned
            if pruned == "all":
                weight.zero_()
            elif pruned == "rows":
                weight[torch.rand(len(weight), generator=generator) < 0.5] = 0
            elif pruned == "some":
                weight[torch.rand(weight.shape, generator=generator) < 0.5] = 0
    hooks = [
        module.register_forward_pre_hook(lambda module, args: (module.settle(args[0], generator),))
        for module in network.modules()
        if isinstance(module, Site)
    ]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return network, x


@st.composite
def layers(draw, dims: int, channels: int | None = None, same: bool = False) -> Layer:
    kernel = draw(st.integers(1, 3)) if dims else 1
    dilation = draw(st.integers(1, 2)) if dims and kernel > 1 else 1
    if same:
        kernel = kernel if kernel % 2 else 3
        padding = dilation * (kernel - 1) // 2
    else:
        padding = draw(st.integers(0, 2)) if dims else 0
    kind = draw(st.sampled_from((None, *KINDS)))
    return Layer(
        channels=channels or draw(st.integers(1, 6)),
        kernel=kernel,
        stride=1 if same or not dims else draw(st.integers(1, 2)),
        padding=padding,
        dilation=dilation,
        groups=1,
        bias=draw(st.booleans()),
        norm=draw(st.booleans()),
        kind=kind,
        states=draw(st.sampled_from((None, "on", "off", "saturated", "any"))),
        pruned=draw(st.sampled_from(("none", "some", "rows", "all"))),
    )


def grouped(draw, layer: Layer, inputs: int, dims: int) -> Layer:
    """Sometimes groups, or a depthwise convolution."""
    choice = draw(st.sampled_from(("dense", "dense", "depthwise", "groups")))
    if dims == 0 or choice == "dense":
        return layer
    if choice == "depthwise":
        return replace(layer, channels=inputs, groups=inputs)
    return replace(layer, channels=layer.channels * 2, groups=2) if inputs % 2 == 0 else layer


@st.composite
def specs(draw) -> Spec:
    dims = draw(st.sampled_from((0, 1, 2, 2)))
    channels, size, blocks = 3, 6, []
    for _ in range(draw(st.integers(1, 4))):
        skip = draw(st.sampled_from((None, None, "identity", "projection")))
        parts, inputs = [], channels
        count = draw(st.integers(1, 3))
        for index in range(count):
            last = index == count - 1
            if skip is None:
                layer = draw(layers(dims))
                reach = layer.dilation * (layer.kernel - 1)
                while dims and (size + 2 * layer.padding - reach - 1) // layer.stride + 1 < 2:
                    layer = replace(layer, padding=layer.padding + 1, stride=1)
                if dims:
                    size = (size + 2 * layer.padding - reach - 1) // layer.stride + 1
            else:
                layer = draw(layers(dims, channels if last and skip == "identity" else None, same=True))
            if not (last and skip == "identity"):
                layer = grouped(draw, layer, channels, dims)
            if last and skip:
                layer = replace(layer, kind=None)
            parts.append(layer)
            channels = layer.channels if not (last and skip == "identity") else inputs
        if skip == "identity":
            parts[-1] = replace(parts[-1], channels=inputs, groups=1)
            channels = inputs
        after = draw(layers(0)) if skip else Layer(kind=None)
        pool = draw(st.sampled_from((None, None, "avg", "max"))) if dims else None
        blocks.append(Block(tuple(parts), skip, after, pool))
        if pool == "avg":
            size = max(1, size // 2)
        elif pool == "max":
            size = max(1, size - 1)
        if dims and size < 3:
            break
    tail = [replace(draw(layers(0)), channels=draw(st.integers(2, 6))) for _ in range(draw(st.integers(1, 3)))]
    tail[-1] = replace(tail[-1], kind=None, pruned="some")
    return Spec(dims, tuple(blocks), draw(st.sampled_from(("mean", "flatten"))), tuple(tail), draw(st.integers(0, 999)))


def observe(spec: Spec, dtype: torch.dtype) -> tuple[Network, Tensor, lc.EntropyReport | None]:
    """A network, its input, and what its rectifiers saw; None if it has none."""
    network, x = build(spec, dtype)
    with torch.no_grad(), lc.EntropyProbe(network) as probe:
        network(x)
    rectifies = any(isinstance(module, Site) and module.layer.kind for module in network.modules())
    return network, x, probe.report() if rectifies else None


def assert_same(model: nn.Module, network: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected, got = network(x.clone()), model(x)
    scale = max(1.0, float(expected.abs().max()))
    assert float((got - expected).abs().max()) <= TOLERANCES[x.dtype] * scale


def check_counted(spec: Spec, dtype: torch.dtype) -> None:
    """Every site that the data show linear is gone, and on these data nothing else changed."""
    network, x, report = observe(spec, dtype)
    result = lc.collapse(network, x, report, tolerance=float("inf"), cost="macs")
    assert_same(result.model, network, x)
    assert {layer.name for layer in report or [] if layer.collapsible} <= set(result.collapsed)
    assert result.after.depth <= result.before.depth
    assert result.after.macs <= result.before.macs


def check_proven(spec: Spec, dtype: torch.dtype) -> None:
    """What bounds prove, no input contradicts: neither those counted, nor others in the box, corners included."""
    network, x, report = observe(spec, dtype)
    result = lc.collapse(network, x, None, box=(-1.0, 1.0), tolerance=float("inf"), cost="latency")
    steady = {site.name for site in result.sites if "can change its sign" in site.reason}
    assert steady <= {layer.name for layer in report or [] if layer.collapsible}
    assert_same(result.model, network, torch.rand(8, *x.shape[1:], dtype=dtype) * 2 - 1)
    assert_same(result.model, network, torch.where(torch.rand(8, *x.shape[1:]) < 0.5, -1.0, 1.0).to(dtype))


# One network takes 0.2 s, most of it in torch.export.
CASES = [
    (check_counted, torch.float64, 200),
    (check_counted, torch.float32, 200),
    (check_proven, torch.float32, 40),
    pytest.param(check_counted, torch.float64, 3000, marks=pytest.mark.nightly),
    pytest.param(check_proven, torch.float32, 1000, marks=pytest.mark.nightly),
]


@pytest.mark.parametrize(("check", "dtype", "examples"), CASES)
def test_random_networks(check: Callable[[Spec, torch.dtype], None], dtype: torch.dtype, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(specs())
    def run(spec: Spec) -> None:
        check(spec, dtype)

    run()
