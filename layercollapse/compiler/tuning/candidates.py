"""What may take the place of a linear region, and what it costs: small convolutions, of full or lower rank.

The candidates are one layer on each tensor that the region reads, and the same of a lower rank with one more layer on
their sum. What costs no less than the region as it collapses exactly is no candidate, and there is none where that is
one layer on each tensor already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import fx

from layercollapse.compiler.analysis.cost import macs
from layercollapse.compiler.ir.graph import Net, shape, source
from layercollapse.compiler.ir.records import Affine, ConvGeometry
from layercollapse.compiler.passes.context import Group, PassContext
from layercollapse.compiler.passes.refit import LinearRegion, Windows, narrower
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
            named.append(f"{some} {'x'.join(map(str, window.kernel))} convolution{'s' * (count > 1)}{stride}")
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


def choices(net: Net, region: LinearRegion, cost: CostModel | None) -> Choices | str | None:
    """What may replace a region of a net: None if nothing is cheaper, or why nothing can."""
    layers = region.layers(net)
    if region.windows is None:
        return "its paths have other strides, or outputs of other sizes for some inputs: no kernel has both"
    exact = _exactly(net, region, cost)
    if exact is None:
        return None
    outputs, dim = shape(region.root)[layers[0][1].channel_dim], layers[0][1].channel_dim
    candidates = [
        candidate
        for windows in narrower(region.windows)
        if unknowns(windows, dim) <= _UNKNOWNS
        for rank in (None, *(outputs // part for part in _RANKS if outputs // part))
        if (candidate := _candidate(region, windows, rank, layers[0][1], cost)).cost
        < (1 if cost is None else _GAIN) * exact.cost
    ]
    if not candidates:
        return None
    # The smallest first where costs are the same.
    candidates.sort(key=lambda one: (one.cost, one.macs))
    largest = max((one.windows for one in candidates), key=lambda windows: unknowns(windows, dim))
    return Choices(region, layers, candidates, exact.cost, exact.macs, largest)


class _Cost(NamedTuple):
    """In ms or multiply-accumulates, and the latter."""

    cost: float
    macs: int


def _exactly(net: Net, region: LinearRegion, cost: CostModel | None) -> _Cost | None:
    """What a region's layers cost as they collapse exactly; None where that is one layer on each tensor read."""
    assert region.windows is not None
    names, reads = {node.name for node in region.nodes}, sorted(node.name for node in region.windows)
    found = list[_Cost]()
    for omitted in (frozenset[Group](), MERGES):
        part = cut(net, names, set(region.nodes), reads)
        run_passes(part, PassContext(None if cost is None else cost.layer, lambda name, some=omitted: some))  # type: ignore[misc]
        layers = list(part.records(Affine))
        if len(layers) <= len(reads):
            return None
        work = sum(macs(op, shape(node)) for node, op in layers)
        time = work if cost is None else sum(cost.layer(op, shape(source(node))) for node, op in layers)
        found.append(_Cost(float(time), work))
    return min(found)


def _candidate(
    region: LinearRegion, windows: Windows, rank: int | None, like: Affine, cost: CostModel | None
) -> Candidate:
    """What layers of some windows and rank cost."""
    size, dim = shape(region.root), like.channel_dim
    outputs = size[dim] if rank is None else rank
    between = list(size)
    between[dim] = outputs
    time, work = 0.0, 0
    planned = [(shape(node), _empty(outputs, shape(node)[dim], window, like)) for node, window in windows.items()]
    if rank is not None:
        planned.append((tuple(between), _empty(size[dim], rank, point(planned[0][1].geometry), like)))
    for read, op in planned:
        made = list(size)
        made[dim] = op.outputs
        work += macs(op, tuple(made))
        time += 0.0 if cost is None else cost.layer(op, read)
    return Candidate(windows, rank, float(work) if cost is None else time, work)


def _empty(outputs: int, inputs: int, window: ConvGeometry, like: Affine) -> Affine:
    weight = torch.zeros(1, dtype=torch.float64).expand(outputs, inputs, *window.kernel)
    bias = torch.zeros(outputs, dtype=torch.float64)
    return Affine(weight, bias, window, 1, like.dtype, origin=like.origin)


def point(window: ConvGeometry) -> ConvGeometry:
    """A kernel of one position in as many dimensions."""
    dims = len(window.kernel)
    return ConvGeometry((1,) * dims, (1,) * dims, (0,) * dims, (1,) * dims)


def unknowns(windows: Windows, dim: int) -> int:
    """Weights of layers with these windows for one output, whose channels are in a dimension."""
    return sum(shape(node)[dim] * math.prod(window.kernel) for node, window in windows.items())
