"""Random networks with random linear sites: the collapsed model must equal the original, every time.

A network is a `Spec`: steps that hypothesis draws freely and shrinks to few. A step that does not fit where it stands
(a kernel larger than the map, a mean over the positions of (N, C)) is left out when the network is built.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from torch import Tensor, nn

import layercollapse as lc
from layercollapse.compiler.backend.emit import emit
from layercollapse.compiler.driver import api
from layercollapse.compiler.frontend.lower import lower, written_anew
from layercollapse.compiler.tuning.variants import Variant
from layercollapse.graph import agreement as verify

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
SIZES = {"flat": (), "tokens": (5,), "1d": (7,), "2d": (7, 6), "3d": (5, 4, 4)}
BENDS = {"relu6": (0.0, 6.0), "hardtanh": (-0.5, 0.75), "clamp": (0.0, 0.75)}
SMOOTH = ("gelu", "silu", "hardswish", "elu")


class Clamp(nn.Module):
    def __init__(self, upper: float | None) -> None:
        super().__init__()
        self.upper = upper

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0, self.upper)


RECTIFIERS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda channels: nn.ReLU(),
    "relu6": lambda channels: nn.ReLU6(),
    "hardtanh": lambda channels: nn.Hardtanh(*BENDS["hardtanh"]),
    "leaky_relu": lambda channels: nn.LeakyReLU(0.2),
    "prelu": lambda channels: nn.PReLU(channels, 0.3),
    "rrelu": lambda channels: nn.RReLU(),
    "threshold": lambda channels: nn.Threshold(0, 0),
    "clamp": lambda channels: Clamp(0.75),
    "clamp_min": lambda channels: Clamp(None),
    "gelu": lambda channels: nn.GELU(),
    "silu": lambda channels: nn.SiLU(),
    "hardswish": lambda channels: nn.Hardswish(),
    "elu": lambda channels: nn.ELU(),
}
NUMBERS: dict[str, Callable[[Tensor], Tensor]] = {
    "2 * x": lambda x: 2 * x,
    "x / 3": lambda x: x / 3,
    "-x": lambda x: -x,
    "x + 1": lambda x: x + 1,
    "1 - x": lambda x: 1 - x,
    "x - 0.5": lambda x: x - 0.5,
    "x / size": lambda x: 3 * x / x.shape[-1],
    "x + size": lambda x: x + x.shape[min(2, x.ndim - 1)] / 8,
}


@dataclass(frozen=True)
class Step:
    """One operation, or branches over one tensor; the fields that an operation does not use have their defaults."""

    op: str
    channels: int = 3
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: str = "dense"  # or "depthwise", "two"
    bias: bool = True
    pruned: str = "none"  # of the weights: or "some", "rows", "all"
    product: str = "none"  # of the weights: or "channels", "inputs", "axes": of rank one, in which layout
    kind: str = "relu"  # the rectifier, the number, the way to join branches
    states: str | None = None  # "on", "off", "saturated" or "any": force the site to be linear; "some": of its neurons
    branches: tuple[tuple[Step, ...], ...] = ()

    def __repr__(self) -> str:
        changed = (f for f in fields(self)[1:] if getattr(self, f.name) != f.default)
        return f"Step({', '.join([repr(self.op), *(f'{f.name}={getattr(self, f.name)!r}' for f in changed)])})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # hypothesis would print every field


@dataclass(frozen=True)
class Spec:
    layout: str  # of the input, see SIZES
    steps: tuple[Step, ...]
    seed: int


class Part(nn.Module):
    """A function, its modules, and whether its result has the channels last."""

    def __init__(self, function: Callable[[Part, Tensor], Tensor], last: bool, **modules: nn.Module) -> None:
        super().__init__()
        self.function, self.last = function, last
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Sequence(nn.Module):
    """The steps that fit, built while an input runs through them."""

    def __init__(self, steps: tuple[Step, ...], x: Tensor, last: bool, generator: torch.Generator) -> None:
        super().__init__()
        parts: list[Part] = []
        for step in steps:
            part = BUILDERS[step.op](step, x, last, generator, parts[-1] if parts else None)
            if part is None:
                continue
            with torch.no_grad():
                y = part.to(x.dtype).eval()(x.clone())
            if 0 in y.shape or y.numel() > 5000:
                continue
            x, last = y, part.last
            parts.append(part)
        self.parts, self.last = nn.ModuleList(parts), last

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


def prune(weight: Tensor, pruned: str, generator: torch.Generator) -> None:
    if pruned == "all":
        weight.zero_()
    elif pruned == "rows":
        weight[torch.rand(len(weight), generator=generator) < 0.5] = 0
    elif pruned == "some":
        weight[torch.rand(weight.shape, generator=generator) < 0.5] = 0


def multiply(weight: Tensor, product: str) -> None:
    """Make a weight (O, I, *kernel) a product of rank one, from entries that it has: (O) times (I, *kernel), or
    (O, *kernel) times (I), or (O, I) times a vector for every output and axis.
    """
    dims = weight.ndim - 2
    one, every = [slice(1)] * dims, [slice(None)] * dims
    if product == "channels":
        weight.copy_(4 * weight[(slice(None), slice(1), *one)] * weight[:1])
    elif product == "inputs":
        weight.copy_(4 * weight[(slice(None), slice(1), *every)] * weight[(slice(1), slice(None), *one)])
    elif product == "axes":
        total = weight[(slice(None), slice(None), *one)]
        for axis in range(dims):
            line = [slice(None) if other == axis else slice(1) for other in range(dims)]
            total = 2 * total * weight[(slice(None), slice(1), *line)]
        weight.copy_(total)


def convolution(step: Step, x: Tensor, last: bool, generator: torch.Generator, before: Part | None) -> Part | None:
    dims = x.ndim - 2
    if last or not 1 <= dims <= 3:
        return None
    inputs, outputs, groups = x.shape[1], step.channels, 1
    if step.groups == "depthwise":
        outputs = groups = inputs
    elif step.groups == "two" and inputs % 2 == 0:
        outputs, groups = 2 * outputs, 2
    extent = step.dilation * (step.kernel - 1) + 1
    if step.op == "conv":
        if min(x.shape[2:]) + 2 * step.padding < extent:
            return None
        kinds: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        rest: dict[str, int] = {}
    else:
        kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        rest = {"output_padding": step.stride - 1 if step.bias else 0}
        if (min(x.shape[2:]) - 1) * step.stride + extent - 2 * step.padding < 1:
            return None
    layer = kinds[dims - 1](
        inputs,
        outputs,
        step.kernel,
        step.stride,
        step.padding,
        dilation=step.dilation,
        groups=groups,
        bias=step.bias,
        **rest,
    )
    multiply(layer.weight.data, step.product)
    prune(layer.weight.data, step.pruned, generator)
    return Part(lambda part, x: part.layer(x), False, layer=layer)


def linear(step: Step, x: Tensor, last: bool, generator: torch.Generator, before: Part | None) -> Part | None:
    if x.ndim == 2 or last:
        layer = nn.Linear(x.shape[-1], step.channels, bias=step.bias)
        multiply(layer.weight.data, step.product)
        prune(layer.weight.data, step.pruned, generator)
        return Part(lambda part, x: part.layer(x), last, layer=layer)
    # Over the channels of a map, which then lie last.
    layer = nn.Linear(x.shape[1], step.channels, bias=step.bias)
    multiply(layer.weight.data, step.product)
    prune(layer.weight.data, step.pruned, generator)
    return Part(lambda part, x: part.layer(x.movedim(1, -1)).movedim(-1, 1), False, layer=layer)


def norm(step: Step, x: Tensor, last: bool, generator: torch.Generator, before: Part | None) -> Part | None:
    if step.kind in ("layer", "rms"):
        # Over features near to each other, a layer norm enlarges rounding by up to 1 / √eps: measured with the default,
        # 1e-5, of two features in float32: from 1.1 to 120 ε, 2.1e-5, for whatever the sums before are rounded to.
        kind = nn.LayerNorm if step.kind == "layer" else nn.RMSNorm
        layer: Any = kind(x.shape[-1], eps=1e-5 if x.dtype == torch.float64 else 1e-2)
    elif last:
        return None
    elif step.kind in ("group", "instance"):
        if math.prod(x.shape[2:]) < 2:
            return None
        groups = 2 if step.kind == "group" and x.shape[1] % 2 == 0 else x.shape[1]
        eps = 1e-5 if x.dtype == torch.float64 else 1e-2
        kind = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[x.ndim - 3]
        layer = nn.GroupNorm(groups, x.shape[1], eps) if step.kind == "group" else kind(x.shape[1], eps, affine=True)
    else:
        layer = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[x.ndim - 2](x.shape[1])
        layer.running_mean.uniform_(-0.5, 0.5, generator=generator)
        layer.running_var.uniform_(0.5, 2.0, generator=generator)
    layer.weight.data.uniform_(-1.5, 1.5, generator=generator)
    if step.kind != "rms":
        layer.bias.data.uniform_(-0.5, 0.5, generator=generator)
    return Part(lambda part, x: part.layer(x), last, layer=layer)


def attention(step: Step, x: Tensor, last: bool, generator: torch.Generator, before: Part | None) -> Part | None:
    """Two heads over the tokens, which see all, themselves and those before, or none of them in one row."""
    if not last or x.ndim != 3:
        return None
    width = 2 * step.channels
    layers = {name: nn.Linear(x.shape[-1], width, bias=step.bias) for name in ("query", "key", "value")}
    joined = nn.Linear(x.shape[-1], 3 * width, bias=step.bias)
    prune(layers["value"].weight.data, step.pruned, generator)
    prune(joined.weight.data, step.pruned, generator)

    def attend(part: Part, x: Tensor) -> Tensor:
        if step.kind == "joined":
            parts = part.joined(x).view(x.shape[0], x.shape[1], 3, 2, -1).permute(2, 0, 3, 1, 4).unbind(0)
        elif step.kind == "split":
            parts = [y.unflatten(-1, (2, -1)).transpose(1, 2) for y in part.joined(x).split(width, -1)]
        else:
            parts = [getattr(part, name)(x).unflatten(-1, (2, -1)).transpose(1, 2) for name in layers]
        q, k, v = parts
        if step.kind == "written":
            y = (q @ k.transpose(-2, -1) / step.channels).softmax(-1) @ v
        else:
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(-1) if step.kind == "masked" else None
            y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=step.kind == "split")
        return y.transpose(1, 2).flatten(2)

    used = {"joined": joined} if step.kind in ("joined", "split") else layers
    return Part(attend, True, **used)


# What changes a tensor with its channels in a dimension, which stays theirs.
CHANGES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "reshape_as": lambda x, channel: x.flatten(0, 1).reshape_as(x),
    "view_as": lambda x, channel: x.contiguous().flatten(1).view_as(x),
    "unflatten": lambda x, channel: x.unflatten(channel, (-1, 1)).flatten(channel, channel + 1),
    "chunk": lambda x, channel: x.chunk(2, channel)[0],
    "split": lambda x, channel: x.split([1, x.shape[channel] - 1], channel)[x.shape[channel] > 1],
    "slice": lambda x, channel: x.narrow(channel, 0, x.shape[channel] // 2 + 1),
    "select": lambda x, channel: x.unsqueeze(1).expand_as(torch.stack([x, x], 1)).select(1, 1),
    "repeat": lambda x, channel: x.repeat_interleave(2, 1 if channel > 1 else 2),
    "stack": lambda x, channel: torch.stack([x, 2 * x], 1).sum(1),
}


def move(step: Step, x: Tensor, last: bool, generator: torch.Generator, before: Part | None) -> Part | None:
    """What moves positions or channels, or adds some."""
    if x.ndim < 3:
        return None
    if step.kind == "roll":
        return Part(lambda part, x: x.roll((1, -1), (0 if last else 2, 1 if last else -1)), last)
    if step.kind == "turn":  # along the channels
        return Part(lambda part, x: x.roll(1, -1 if last else 1), last)
    if step.kind == "halves":
        channel = -1 if last else 1
        sizes = [x.shape[channel] // 2, x.shape[channel] - x.shape[channel] // 2]
        return Part(lambda part, x: torch.cat(x.split(sizes, channel)[::-1], channel), last)
    if step.kind in CHANGES:
        change, channel = CHANGES[step.kind], x.ndim - 1 if last else 1
        return Part(lambda part, x: change(x, channel), last)
    if step.kind == "fill":
        return Part(lambda part, x: x.masked_fill(x > 0.5, -0.25), last)
    if not last:
        return None
    size = (1, x.shape[1] if step.kind == "positions" else 1, x.shape[-1])
    value = torch.rand(size, generator=generator) * 2 - 1
    if step.kind == "positions":
        part = Part(lambda part, x: x + part.value, True)
    else:
        part = Part(lambda part, x: torch.cat([part.value.expand(x.shape[0], -1, -1), x], 1), True)
    part.value = nn.Parameter(value)
    return part


def per_channel(x: Tensor, last: bool, values: Tensor) -> Tensor:
    """(C,) so that it broadcasts over x."""
    return values if last or x.ndim == 2 else values.reshape(-1, *[1] * (x.ndim - 2))


def tensor(step: Step, x: Tensor, last: bool, generator: torch.Generator, before: Part | None) -> Part:
    """A layer scale, or a sum with a tensor of the model."""
    values = per_channel(x, last, torch.rand(x.shape[-1 if last else 1], generator=generator) * 2 - 1)
    add = step.kind == "add"
    part = Part(lambda part, x: x + part.values if add else x * part.values, last)
    part.values = nn.Parameter(values)
    return part


def rectifier(step: Step, x: Tensor, last: bool, generator: torch.Generator, before: Part | None) -> Part:
    """The rectifier; the bias before it, or one of its own, is moved so that the site is linear if it shall be."""
    channels = x.shape[-1 if last else 1]
    act = RECTIFIERS[step.kind](1 if last else channels)
    if step.states is None or step.kind in SMOOTH:
        return Part(lambda part, x: part.act(x), last, act=act)
    z = x.movedim(-1 if last else 1, 0).flatten(1)
    low, high = z.amin(1), z.amax(1)
    lower, upper = BENDS.get(step.kind, (0.0, None))
    # Neurons far from their bend can be proven, too.
    margin = 8.0 if float(torch.rand(1, generator=generator)) < 0.5 else 0.01
    shifts = {"on": lower + (margin if upper is None else 0.01) - low, "off": lower - margin - high}
    if upper is not None:
        shifts["saturated"] = upper + margin - low
        if bool((high - low > upper - lower - 0.02).any()):
            del shifts["on"]
    names = list(shifts) if step.states not in shifts else [step.states]
    if step.states == "some":
        shifts["mixed"] = torch.zeros_like(low)
        names = ["mixed", *shifts, *(["on"] if "on" in shifts else [])]
    pick = torch.randint(len(names), (len(low),), generator=generator)
    shift = torch.stack([shifts[name] for name in names])[pick, torch.arange(len(low))]
    bias = getattr(getattr(before, "layer", None), "bias", None)
    if bias is not None and len(bias) == len(shift) and (last or not isinstance(before.layer, nn.LayerNorm)):
        bias.data += shift
        x += per_channel(x, last, shift)  # what the sequence goes on with
        return Part(lambda part, x: part.act(x), last, act=act)
    part = Part(lambda part, x: part.act(x + part.shift), last, act=act)
    part.shift = nn.Parameter(per_channel(x, last, shift))
    return part


def number(step: Step, x: Tensor, last: bool, generator: torch.Generator, before: Part | None) -> Part:
    return Part(lambda part, x: NUMBERS[step.kind](x), last)


def pool(step: Step, x: Tensor, last: bool, generator: torch.Generator, before: Part | None) -> Part | None:
    dims = x.ndim - 2
    padding = min(step.padding, step.kernel // 2)
    if last or not 1 <= dims <= 3 or min(x.shape[2:]) < step.kernel:
        return None
    if step.kind == "max":
        function: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[dims - 1]
        return Part(lambda part, x: function(x, step.kernel, step.stride, padding), False)
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dims - 1]
    return Part(lambda part, x: function(x, step.kernel, step.stride, padding, False, step.bias), False)


def pad(step: Step, x: Tensor, last: bool, generator: torch.Generator, before: Part | None) -> Part | None:
    if last or x.ndim < 3:
        return None
    return Part(lambda part, x: F.pad(x, [step.padding] * (2 * (x.ndim - 2))), False)


def dropout(step: Step, x: Tensor, last: bool, generator: torch.Generator, before: Part | None) -> Part:
    return Part(lambda part, x: part.drop(x), last, drop=nn.Dropout(0.5))


def reduce(step: Step, x: Tensor, last: bool, generator: torch.Generator, before: Part | None) -> Part | None:
    if x.ndim == 2:
        return None
    if last:
        return Part(lambda part, x: x.mean(1), x.ndim > 3)
    if step.kind == "flatten":
        return Part(lambda part, x: torch.flatten(x, 1), False)
    if step.kind == "samples":
        return Part(lambda part, x: x.reshape(x.shape[0], -1), False)
    if step.kind == "features":
        return Part(lambda part, x: x.reshape(-1, x.shape[1:].numel()), False)
    if step.kind == "pool":
        function: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[x.ndim - 3]
        return Part(lambda part, x: function(x, 1), False)
    if step.kind == "tokens":
        return Part(lambda part, x: x.flatten(2).transpose(1, 2), True)
    if step.kind == "rows":
        return Part(lambda part, x: x.mean(2), False) if x.ndim > 3 else None
    if step.kind == "one row":
        return Part(lambda part, x: x[:, :, 0], False) if x.ndim > 3 else None
    if step.kind == "join":
        return Part(lambda part, x: x.reshape(x.shape[0], x.shape[1], -1), False)
    if step.kind == "squeeze":
        if x.ndim != 4:
            return None
        # What the size of the map decides is a number in the graph.
        ways: tuple[Callable[[Tensor], Tensor], ...] = (
            lambda x: x.amax(2, keepdim=True),
            lambda x: F.max_pool2d(x, (x.shape[2], 1)),
            lambda x: F.avg_pool2d(x, (x.shape[2], 1)),
            lambda x: F.adaptive_max_pool2d(x, (1, None)),
        )
        way = ways[int(torch.randint(len(ways), (1,), generator=generator))]
        return Part(lambda part, x: way(x).squeeze(2), False)
    return Part(lambda part, x: x.mean(tuple(range(2, x.ndim))), False)


def branches(step: Step, x: Tensor, last: bool, generator: torch.Generator, before: Part | None) -> Part | None:
    """Ways over one tensor, summed, subtracted or concatenated; a projection where only the channels differ."""
    ways = [Sequence(steps, x.clone(), last, generator) for steps in step.branches]
    with torch.no_grad():
        made = [way.to(x.dtype)(x.clone()) for way in ways]
    channel = -1 if ways[0].last else 1
    kept: list[nn.Module] = []
    for way, y in zip(ways, made, strict=True):
        sizes = [list(t.shape) for t in (y, made[0])]
        for size in sizes:
            if len(size) == len(sizes[0]):
                size[channel] = 0
        if way.last != ways[0].last or sizes[0] != sizes[1]:
            continue
        if step.kind != "cat" and y.shape != made[0].shape:
            fit = Step("linear" if y.ndim == 2 or way.last else "conv", channels=made[0].shape[channel])
            kept.append(Sequence((fit,), y, way.last, generator))
            kept[-1] = nn.Sequential(way, kept[-1])
        else:
            kept.append(way)
    modules = {f"way{index}": way for index, way in enumerate(kept)}
    if len(kept) < 2:
        return None

    def join(part: Part, x: Tensor) -> Tensor:
        parts = [getattr(part, name)(x) for name in modules]
        if step.kind == "cat":
            return torch.cat(parts, channel)
        total = parts[0]
        for other in parts[1:]:
            total = total - other if step.kind == "sub" else total + other
        return total

    return Part(join, ways[0].last, **modules)


def twice(step: Step, x: Tensor, last: bool, generator: torch.Generator, before: Part | None) -> Part | None:
    """The same modules, called twice."""
    inner = Sequence(step.branches[0], x.clone(), last, generator).to(x.dtype)
    with torch.no_grad():
        if inner.last != last or inner(x.clone()).shape != x.shape:
            return None
    return Part(lambda part, x: part.inner(part.inner(x)), last, inner=inner)


GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "none": lambda x: x,
}


def gate(step: Step, x: Tensor, last: bool, generator: torch.Generator, before: Part | None) -> Part | None:
    """A product with a function of some steps over the tensor, or over its mean: a squeeze and excitation."""
    channel = -1 if last or x.ndim == 2 else 1
    others = tuple(d for d in range(1, x.ndim) if d != channel % x.ndim)

    def squeezed(x: Tensor) -> Tensor:
        return x.mean(others, keepdim=True) if step.bias and others else x

    way = Sequence(step.branches[0], squeezed(x).clone(), last, generator).to(x.dtype)
    with torch.no_grad():
        made = way(squeezed(x).clone())
    if way.last != last or made.ndim != x.ndim or any(made.shape[d] != squeezed(x).shape[d] for d in others):
        return None
    fit = Step("linear" if channel == -1 else "conv", channels=x.shape[channel], pruned=step.pruned)
    own = Sequence((fit,), made, last, generator)
    return Part(lambda part, x: x * GATES[step.kind](part.own(part.way(squeezed(x)))), last, way=way, own=own)


def resize(step: Step, x: Tensor, last: bool, generator: torch.Generator, before: Part | None) -> Part | None:
    if last or not 3 <= x.ndim <= 5:
        return None
    smooth = ("linear", "bilinear", "trilinear")[x.ndim - 3]
    mode = smooth if step.kind == "smooth" else step.kind
    return Part(lambda part, x: F.interpolate(x, scale_factor=2, mode=mode), False)


BUILDERS: dict[str, Callable[..., Part | None]] = {
    "gate": gate,
    "resize": resize,
    "conv": convolution,
    "deconv": convolution,
    "linear": linear,
    "norm": norm,
    "tensor": tensor,
    "rectify": rectifier,
    "number": number,
    "pool": pool,
    "pad": pad,
    "dropout": dropout,
    "attention": attention,
    "move": move,
    "reduce": reduce,
    "branches": branches,
    "twice": twice,
}


def build(spec: Spec, dtype: torch.dtype) -> tuple[Sequence, Tensor]:
    """The network and the input that its states are forced on, with values from -1 to 1.

    One of half precision is built in float64, and every second one keeps the parameters of its norms in float32.
    """
    made = dtype if dtype in TOLERANCES else torch.float64
    generator = torch.Generator().manual_seed(spec.seed)
    sizes = SIZES[spec.layout]
    shape = (4, *sizes, 3) if spec.layout == "tokens" else (4, 3, *sizes)
    x = torch.rand(shape, generator=generator, dtype=made) * 2 - 1
    torch.manual_seed(spec.seed)
    network = Sequence(spec.steps, x.clone(), spec.layout == "tokens", generator).eval().to(dtype)
    if made != dtype and spec.seed % 2:
        for module in network.modules():
            if isinstance(module, nn.LayerNorm | nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                module.float()
    return network, x.to(dtype)


PRUNED = st.sampled_from(("none", "some", "rows", "all"))
PRODUCTS = st.sampled_from(("none", "none", "none", "channels", "inputs", "axes"))
STATES = st.sampled_from(("any", "on", "off", "saturated", "some", None))


@st.composite
def affine(draw: Any, same: bool) -> Step:
    """A convolution, transposed or not, or a linear layer; `same` keeps the size of a map."""
    op = draw(st.sampled_from(("conv", "conv", "linear", "conv" if same else "deconv")))
    kernel = draw(st.sampled_from((1, 3) if same else (1, 2, 3)))
    dilation = draw(st.integers(1, 2)) if kernel > 1 else 1
    return Step(
        op,
        channels=draw(st.integers(1, 6)),
        kernel=kernel,
        stride=1 if same else draw(st.integers(1, 2)),
        padding=dilation * (kernel - 1) // 2 if same else draw(st.integers(0, 2)),
        dilation=dilation,
        groups=draw(st.sampled_from(("dense", "dense", "depthwise", "two"))),
        bias=draw(st.booleans()),
        pruned=draw(PRUNED),
        product=draw(PRODUCTS),
    )


@st.composite
def block(draw: Any) -> Step:
    """Two layers around a rectifier of which some neurons bend, beside a skip: an identity, or a layer."""
    kind = draw(st.sampled_from(tuple(kind for kind in RECTIFIERS if kind not in SMOOTH)))
    wide, narrow = (replace(draw(affine(True)), op="linear" if draw(st.booleans()) else "conv") for _ in range(2))
    wide = replace(wide, channels=draw(st.integers(6, 12)), kernel=1, padding=0, groups="dense", pruned="none")
    narrow = replace(narrow, groups="dense")
    skip = draw(st.lists(affine(True), max_size=1).map(tuple))
    return Step("branches", kind="add", branches=(skip, (wide, Step("rectify", kind=kind, states="some"), narrow)))


@st.composite
def step(draw: Any, same: bool, inner: bool) -> Step:
    """Any step; `same` for one that keeps the size of a map, `inner` for one without branches."""
    ops = ["affine", "affine", "affine", "norm", "rectify", "rectify", "number", "tensor", "dropout", "pool"]
    if not same:
        ops += ["pad", "reduce", "attention", "move", "resize"]
    if not inner:
        ops += ["branches", "branches", "block", "twice", "gate"]
    op = draw(st.sampled_from(ops))
    if op == "affine":
        return draw(affine(same))
    if op == "block":
        return draw(block())
    if op == "norm":
        return Step(op, kind=draw(st.sampled_from(("batch", "batch", "layer", "rms", "group", "instance"))))
    if op == "attention":
        kind = draw(st.sampled_from(("plain", "written", "masked", "joined", "split")))
        return Step(op, kind=kind, channels=draw(st.integers(1, 4)), bias=draw(st.booleans()), pruned=draw(PRUNED))
    if op == "move":
        return Step(op, kind=draw(st.sampled_from(("roll", "turn", "halves", "fill", "positions", "token", *CHANGES))))
    if op == "rectify":
        return Step(op, kind=draw(st.sampled_from(tuple(RECTIFIERS))), states=draw(STATES))
    if op == "number":
        return Step(op, kind=draw(st.sampled_from(tuple(NUMBERS))))
    if op == "tensor":
        return Step(op, kind=draw(st.sampled_from(("mul", "add"))))
    if op == "pool":
        kind, counts = draw(st.sampled_from(("avg", "max"))), draw(st.booleans())
        if same:
            return Step(op, kind=kind, kernel=3, padding=1, bias=counts)
        stride, padding = draw(st.integers(1, 2)), draw(st.integers(0, 1))
        return Step(op, kind=kind, kernel=draw(st.integers(2, 3)), stride=stride, padding=padding, bias=counts)
    if op == "pad":
        return Step(op, padding=draw(st.integers(0, 2)))
    if op == "reduce":
        flat = ("flatten", "samples", "features")
        kinds = ("mean", *flat, "pool", "tokens", "rows", "one row", "join", "squeeze")
        return Step(op, kind=draw(st.sampled_from(kinds)))
    if op == "dropout":
        return Step(op)
    if op == "resize":
        return Step(op, kind=draw(st.sampled_from(("nearest", "nearest-exact", "smooth"))))
    ways = st.lists(step(True, True), max_size=4).map(tuple)
    if op == "twice":
        return Step(op, branches=(draw(ways),))
    if op == "gate":
        kind, pruned = draw(st.sampled_from(tuple(GATES))), draw(st.sampled_from(("none", "rows", "all")))
        return Step(op, kind=kind, pruned=pruned, bias=draw(st.booleans()), branches=(draw(ways),))
    join = draw(st.sampled_from(("add", "add", "sub", "cat")))
    return Step(op, kind=join, branches=tuple(draw(st.lists(ways, min_size=2, max_size=3))))


@st.composite
def parallel(draw: Any) -> Step:
    """A block of networks that are re-parameterized: layers over one tensor, each with a norm, and the norm alone."""
    norm = Step("norm", kind="batch")
    kernels = draw(st.lists(st.sampled_from((1, 3, 3)), min_size=2, max_size=4))
    groups = draw(st.sampled_from(("dense", "depthwise")))
    ways = [
        (Step("conv", channels=3, kernel=k, padding=k // 2, groups=groups, bias=draw(st.booleans())), norm)
        for k in kernels
    ]
    return Step("branches", kind="add", branches=(*ways, *([(norm,)] if draw(st.booleans()) else [])))


@st.composite
def reparameterized(draw: Any) -> Spec:
    """Such blocks in sequence, and large depthwise kernels before pointwise ones, some with rectifiers between."""
    steps = list[Step]()
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            steps.append(draw(parallel()))
        else:
            kernel = draw(st.sampled_from((5, 7)))
            pads = draw(st.booleans())
            steps.append(Step("conv", kernel=kernel, padding=kernel // 2 if pads else 0, groups="depthwise"))
            steps.append(Step("conv", channels=3))
        if draw(st.integers(0, 3)) == 0:
            steps.append(Step("rectify", states=draw(STATES)))
    return Spec(draw(st.sampled_from(("1d", "2d", "3d"))), tuple(steps), draw(st.integers(0, 999)))


@st.composite
def specs(draw: Any) -> Spec:
    layout = draw(st.sampled_from(("2d", "2d", "1d", "tokens", "flat", "3d")))
    body = draw(st.lists(step(False, False), min_size=2, max_size=10))
    tail = draw(st.lists(st.one_of(affine(True), step(True, True)), max_size=4))
    # Where the box is still narrow; behind a layer, as in a residual network.
    head = draw(st.one_of(st.just(()), st.tuples(block()), st.tuples(affine(True), block())))
    return Spec(layout, (*head, *body, *tail), draw(st.integers(0, 999)))


def observe(spec: Spec, dtype: torch.dtype) -> tuple[Sequence, Tensor, lc.EntropyReport | None]:
    """A network, its input, and what its piecewise linear rectifiers saw; None if it has none."""
    network, x = build(spec, dtype)
    if not any(hasattr(module, "act") for module in network.modules()):
        return network, x, None
    with torch.no_grad(), lc.EntropyProbe(network) as probe:
        network(x.clone())
    layers = [layer for layer in probe.report() if layer.kind not in SMOOTH]
    return network, x, lc.EntropyReport(layers) if layers else None


def at_upper_bend(network: nn.Module, x: Tensor) -> set[str]:
    """Paths of the rectifiers that see a value exactly at their upper bend."""
    found: set[str] = set()

    def look(name: str, upper: float, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if bool((args[0] == upper).any()):
            found.add(name)

    handles = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Hardtanh):  # and ReLU6, which is one
            handles.append(module.register_forward_pre_hook(partial(look, name, module.max_val)))
        elif isinstance(module, Clamp) and module.upper is not None:
            handles.append(module.register_forward_pre_hook(partial(look, name, module.upper)))
    with torch.no_grad():
        network(x.clone())
    for handle in handles:
        handle.remove()
    return found


def assert_same(model: nn.Module, network: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected, got = network(x.clone()), model(x.clone())
    assert got.shape == expected.shape
    scale = max(1.0, float(expected.abs().max()))
    assert float((got - expected).detach().abs().max()) <= TOLERANCES[x.dtype] * scale


def check_counted(spec: Spec, dtype: torch.dtype) -> lc.CollapseResult:
    """Every site that the data show linear is gone, and on these data nothing else changed, in any batch.

    So also where only some neurons of a site are linear, every second time.
    """
    network, x, report = observe(spec, dtype)
    result = lc.collapse(network, x, report, tolerance=float("inf"), cost="macs", partial=spec.seed % 2 == 0)
    assert_same(result.model, network, x)
    assert_same(result.model, network, x[:1])
    assert {layer.name for layer in report or [] if layer.collapsible} <= set(result.collapsed)
    assert result.after.depth <= result.before.depth
    assert result.after.macs <= result.before.macs
    return result


@contextmanager
def drawn_times(seed: int) -> Iterator[None]:
    """Times are drawn; every pass applied is the slowest more often than not: what is left out wins in every second
    network.
    """
    drawn = random.Random(seed).random
    with pytest.MonkeyPatch.context() as patch:
        slow = {Variant.ALL: 3.0}
        patch.setattr(
            api.Latency,
            "networks",
            lambda self, models, *_, **__: {name: drawn() * slow.get(name, 1.0) for name in models},
        )
        yield


def check_proven(spec: Spec, dtype: torch.dtype) -> lc.CollapseResult:
    """What bounds prove, no input contradicts: neither those counted, nor others in the box, of other sizes too.

    Other sizes may be refused, where the example's are in the graph.

    That holds whichever way to write the network is the fastest: the times are drawn, every second time.
    """
    network, x, report = observe(spec, dtype)
    with drawn_times(spec.seed):
        result = lc.collapse(
            network, x, None, box=(-1.0, 1.0), tolerance=float("inf"), cost=("macs", "latency")[spec.seed % 2]
        )
    steady = {site.name for site in result.sites if "can change its sign" in site.reason}
    # A value at an upper bend is counted as beyond it, though both pieces give it.
    bent = tuple(at_upper_bend(network, x))
    assert all(layer.collapsible or layer.name.startswith(bent) for layer in report or [] if layer.name in steady)
    larger = (8, *(n + 3 for n in x.shape[1:])) if spec.layout == "tokens" else (8, 3, *(n + 3 for n in x.shape[2:]))
    if spec.layout == "tokens":
        larger = (*larger[:-1], 3)
    for shape in ((8, *x.shape[1:]), larger):
        for other in (torch.rand(shape, dtype=dtype) * 2 - 1, torch.where(torch.rand(shape) < 0.5, -1.0, 1.0)):
            if shape[1:] != x.shape[1:] and result.fixed_sizes:
                with pytest.raises(lc.LayerCollapseError, match="was made for sizes of"):
                    result.model(other.to(dtype))
            elif runs(network, other.to(dtype)):
                assert_same(result.model, network, other.to(dtype))
    return result


def check_half(spec: Spec, dtype: torch.dtype) -> lc.CollapseResult:
    """Beside the same weights in float64, a network of half precision errs no more than before, up to a factor of 4.

    Before is what it erred itself, or what rounding its weights once more does: the algebra does round them.
    """
    assume(runs(*build(spec, dtype)))  # not every operation has a half-precision one on a CPU
    network, x, report = observe(spec, dtype)
    if spec.seed % 3:
        result = lc.collapse(network, x, report, tolerance=float("inf"), cost="macs", partial=spec.seed % 4 < 2)
    else:
        result = lc.collapse(network, x, None, box=(-1.0, 1.0), tolerance=float("inf"), cost="macs")
    state = network.state_dict()
    for name, value in result.model.state_dict().items():
        assert value.dtype in ({state[name].dtype} if name in state else {dtype, *(v.dtype for v in state.values())})
    eps, generator = torch.finfo(dtype).eps, torch.Generator().manual_seed(spec.seed)
    exact = copy.deepcopy(network).double()
    rounded = [copy.deepcopy(exact) for _ in range(3)]
    for parameter in (parameter for other in rounded for parameter in other.parameters()):
        parameter.data *= 1 + eps * (torch.rand(parameter.shape, generator=generator, dtype=torch.float64) - 0.5)
    others = () if spec.seed % 3 else (torch.rand(8, *x.shape[1:], generator=generator) * 2 - 1,)
    with torch.no_grad():
        for inputs in (x, x[:1], *(other.to(dtype) for other in others)):
            true, got = exact(inputs.double()), result.model(inputs.clone())
            assert (got.dtype, got.shape) == (dtype, true.shape)
            before = [network(inputs.clone()), *(other(inputs.double()) for other in rounded)]
            error, *errors = (float((y.double() - true).abs().max()) for y in (got, *before))
            assert error <= 4 * (max(errors) + eps * float(true.abs().max()))
    return result


def check_tolerance(spec: Spec, dtype: torch.dtype) -> lc.CollapseResult:
    """Whatever the tolerance, what comes out keeps it, and there is no error: what rounding breaks is left as it came.

    Every operation by itself gives what it gave, bit for bit; where nothing is read from it, nothing is left out.
    """
    assume(runs(*build(spec, dtype)))
    network, x, report = observe(spec, dtype)
    captured = lc.capture(network, x)
    same = emit(lower(captured, network, written_anew(lower(captured, network))))
    assert verify.compare(network, same, [x]).max_abs_error == 0
    with torch.no_grad():
        scale = float(network(x.clone()).abs().max())
    tolerance = scale * (0.0, 1e-8, 3e-8, 1e-7, 1e-6)[spec.seed % 5] * (1e5 if dtype == torch.bfloat16 else 1)
    options: dict[str, Any] = {"partial": spec.seed % 3 == 0, "cost": ("macs", "latency")[spec.seed % 2]}
    with drawn_times(spec.seed):
        result = lc.collapse(network, x, report, box=(-1.0, 1.0), tolerance=tolerance, **options)
    found = verify.compare(network, result.model, [x])
    assert found.max_abs_error == result.max_abs_error <= tolerance
    return result


def runs(network: nn.Module, x: Tensor) -> bool:
    """Whether a network takes inputs of this size."""
    try:
        with torch.no_grad():
            network(x.clone())
    except RuntimeError:
        return False
    return True


# One network takes 0.3 s, most of it in torch.export. How many there are in make test, in make test-long, nightly.
CASES = {
    (check_counted, torch.float64): (25, 100, 1000),
    (check_counted, torch.float32): (15, 60, 1000),
    (check_proven, torch.float64): (10, 40, 500),
    (check_half, torch.bfloat16): (8, 30, 500),
    (check_tolerance, torch.float32): (2, 20, 500),
    (check_tolerance, torch.bfloat16): (1, 8, 200),
}
MARKS = ((), pytest.mark.long, pytest.mark.nightly)


@pytest.mark.parametrize(
    ("check", "dtype", "examples"),
    [
        pytest.param(*case, examples, marks=marks)
        for case, numbers in CASES.items()
        for examples, marks in zip(numbers, MARKS, strict=True)
    ],
)
def test_random_networks(
    check: Callable[[Spec, torch.dtype], lc.CollapseResult], dtype: torch.dtype, examples: int
) -> None:
    partial = 0

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(specs())
    def run(spec: Spec) -> None:
        nonlocal partial
        partial += any(site.status == "partial" for site in check(spec, dtype).sites)

    run()
    assert partial > 0 or examples < 100


@pytest.mark.parametrize("examples", [12, pytest.param(300, marks=pytest.mark.nightly)])
def test_random_networks_of_branches_and_large_kernels(examples: int) -> None:
    merged = 0

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(reparameterized())
    def run(spec: Spec) -> None:
        nonlocal merged
        result = check_counted(spec, torch.float64)
        merged += result.after.macs < result.before.macs

    run()
    assert merged > examples // 4
