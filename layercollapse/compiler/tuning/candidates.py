"""What may take the place of a linear region, and what it costs: small convolutions, of full or lower rank.

The candidates are one layer on each tensor that the region reads, and the same of a lower rank with one more layer on
their sum. What costs no less than the region as it collapses exactly is no candidate, and there is none where that is
one layer on each tensor already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from layercollapse.compiler.analysis.cost import macs
from layercollapse.compiler.backend.emit import emit
from layercollapse.compiler.ir.graph import Net, shape
from layercollapse.compiler.ir.records import Affine, ConvGeometry
from layercollapse.compiler.passes.context import Group, PassContext
from layercollapse.compiler.passes.refit import LinearRegion, Replacement, Windows, narrower, rewritten
from layercollapse.compiler.passes.registry import run_passes
from layercollapse.compiler.tuning.regions import cut
from layercollapse.compiler.tuning.timer import CostModel
from layercollapse.compiler.tuning.variants import MERGES

# Unknowns of an output at most: a 3x3 kernel on 512 channels. Their products are 170 MiB in float64.
_UNKNOWNS = 4700
# The ranks that are tried: one half and one quarter of the outputs.
_RANKS = (2, 4)
# What is timed has to be faster by this much to take the place of what is exact.
_GAIN = 0.9
# The race of a region and its candidates may take so long.
_SECONDS, _PASSES = 0.5, 50


@dataclass(frozen=True, eq=False)
class Candidate:
    """Layers that may replace a region.

    Attributes:
        windows: tensor that is read -> the window of the layer on it.
        rank: the channels between these layers and one on their sum; None: there is no such layer.
        cost: in ms, or multiply-accumulates.
        macs: multiply-accumulates for one sample.
    """

    windows: Windows
    rank: int | None
    cost: float
    macs: int

    def __str__(self) -> str:
        named = []
        for window in dict.fromkeys(self.windows.values()):
            count = sum(other == window for other in self.windows.values())
            some = "one" if count == 1 else f"{count}"
            if not window.kernel:
                named.append(f"{some} linear layer{'s' * (count > 1)}")
                continue
            stride = f" of stride {'x'.join(map(str, dict.fromkeys(window.stride)))}" if max(window.stride) > 1 else ""
            kernel = "x".join(map(str, window.kernel)) if len(window.kernel) > 1 else f"kernel-{window.kernel[0]}"
            named.append(f"{some} {kernel} convolution{'s' * (count > 1)}{stride}")
        return " and ".join(named) + ("" if self.rank is None else f" of rank {self.rank}")


@dataclass(frozen=True, eq=False)
class Choices:
    """What may replace a region.

    Attributes:
        region: the region.
        layers: its affine layers.
        candidates: what is cheaper than it, the cheapest first.
        cost: of the region as it collapses exactly, in ms or multiply-accumulates.
        macs: the same in multiply-accumulates.
        windows: the largest of any candidate.
    """

    region: LinearRegion
    layers: Sequence[tuple[fx.Node, Affine]]
    candidates: Sequence[Candidate]
    cost: float
    macs: int
    windows: Windows

    @property
    def dim(self) -> int:
        """The dimension of channels, 1 or -1."""
        return self.layers[0][1].channel_dim

    @property
    def outputs(self) -> int:
        """Channels of the root."""
        return shape(self.region.root)[self.dim]


def choices(net: Net, region: LinearRegion, cost: CostModel | None, device: torch.device) -> Choices | str | None:
    """What may replace a region of a net: None if nothing is cheaper, or why nothing can.

    Args:
        net: the net.
        region: a part of it.
        cost: what decides; None: multiply-accumulates.
        device: where networks are timed.
    """
    layers = region.layers(net)
    if region.windows is None:
        return "its paths have other strides, or outputs of other sizes for some inputs: no kernel has both"
    like, dim = layers[0][1], layers[0][1].channel_dim
    reads = sorted(node.name for node in region.windows)
    exact, candidates = list[Net](), list[tuple[Windows, int | None]]()
    for omitted in (frozenset[Group](), MERGES, frozenset({Group.THRIFT})):
        part = cut(net, {node.name for node in region.nodes}, set(region.nodes), reads)
        run_passes(part, PassContext(lambda name, some=omitted: some))  # type: ignore[misc]
        if not omitted and sum(1 for _ in part.records(Affine)) <= len(reads):
            return None
        exact.append(part)
    plain = cut(net, {node.name for node in region.nodes}, set(region.nodes), reads)
    outputs = shape(region.root)[dim]
    for windows in narrower(region.windows):
        if unknowns(windows, dim) <= _UNKNOWNS:
            candidates += [(windows, rank) for rank in (None, *(outputs // part for part in _RANKS if outputs // part))]
    nets = [*exact, *(rewritten(plain, [_zeros(region, *some, like)]) for some in candidates)]
    work = [sum(macs(op, shape(node)) for node, op in part.records(Affine)) for part in nets]
    costs = [float(count) for count in work]
    if cost is not None:
        # Zeros are as fast as anything else.
        inputs = tuple(torch.zeros(shape(node), dtype=like.dtype, device=device) for node in _by_name(region.windows))
        models = {index: emit(part, device) for index, part in enumerate(nets)}
        times = cost.networks(models, inputs, seconds=_SECONDS, passes=_PASSES)
        costs = [times[index] for index in models]
    best = min(range(len(exact)), key=costs.__getitem__)
    cheaper = [
        Candidate(*some, costs[index], work[index])
        for index, some in enumerate(candidates, len(exact))
        if costs[index] < (1 if cost is None else _GAIN) * costs[best]
    ]
    if not cheaper:
        return None
    # The smallest first where costs are the same.
    cheaper.sort(key=lambda one: (one.cost, one.macs))
    largest = max((one.windows for one in cheaper), key=lambda windows: unknowns(windows, dim))
    return Choices(region, layers, cheaper, costs[best], work[best], largest)


def _by_name(windows: Windows) -> list[fx.Node]:
    return sorted(windows, key=lambda node: node.name)


def _zeros(region: LinearRegion, windows: Windows, rank: int | None, like: Affine) -> Replacement:
    """Layers of some windows and rank, not fitted."""
    outputs = shape(region.root)[like.channel_dim]
    layers = [
        (node, _empty(rank or outputs, shape(node)[like.channel_dim], window, like)) for node, window in windows.items()
    ]
    last = None if rank is None else _empty(outputs, rank, point(layers[0][1].geometry), like)
    return Replacement(region, layers, last)


def _empty(outputs: int, inputs: int, window: ConvGeometry, like: Affine) -> Affine:
    weight = torch.zeros(1, dtype=torch.float64).expand(outputs, inputs, *window.kernel)
    bias = torch.ones(outputs, dtype=torch.float64)  # one of zeros would not be emitted
    return Affine(weight, bias, window, 1, like.dtype, origin=like.origin)


def point(window: ConvGeometry) -> ConvGeometry:
    """A kernel of one position in as many dimensions."""
    dims = len(window.kernel)
    return ConvGeometry((1,) * dims, (1,) * dims, (0,) * dims, (1,) * dims)


def unknowns(windows: Windows, dim: int) -> int:
    """Weights of layers with these windows for one output, whose channels are in a dimension."""
    return sum(shape(node)[dim] * math.prod(window.kernel) for node, window in windows.items())
