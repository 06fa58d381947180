"""The rule that makes two layers in sequence of one, where that is exact and faster, or half the work at most.

The axes of a kernel are dealt out: those in T to the first layer, the others to the second, with r channels between.
The weight, laid out as a matrix with a row for every output and every tap of the second layer, and a column for every
input and every tap of the first, must be a product of rank r:

    W[(o, taps of the second), (i, taps of the first)] = Σ_ρ U[(o, taps of the second), ρ] V[ρ, (i, taps of the first)]

T empty: a 1×1 convolution to r channels, then the whole kernel. T all axes: the kernel to r channels, then 1×1. Some
axes: (k×1) then (1×k), or the other way round. A linear layer has no axes: two linear layers. Each of the three kinds
of blocks on the diagonal of what the layers do is tried: the groups of the layer; one block for every output (the
second layer has a group for each: 1×1, then depthwise); one for every input (depthwise, then 1×1).

The first layer adds nothing, so that a zero in its padding stays a zero between the two, and each axis keeps stride,
padding and dilation with the layer that has its taps: nothing changes at a border. Bias and plane go to the second; a
plane whose taps the second has not all becomes a map beside it. Transposed convolutions, and layers that share their
weight with others, stay as they are.

A layer is split once: neither its parts nor what they merge to under their names is split again. Rules that rename a
layer take it behind a pooling or out of a concatenation, and none brings it back. So splits end, and with them the loop
of rules, whatever a clock says; without one, what is split again merges only where multiply-accumulates fall.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from layercollapse.collapse.cost import macs
from layercollapse.collapse.fold import tied
from layercollapse.collapse.ir import Affine, Field, Net, Window, shape, source
from layercollapse.collapse.lowrank import LARGEST, factors, needs_more, sample_size
from layercollapse.collapse.weights import held, taken


def split_layers(net: Net) -> bool:
    """A layer that is a product of two smaller ones becomes these."""
    changed = False
    calls = net.calls()
    done = {name for parts, _ in net.split.values() for name in parts}
    for node, op in net.records(Affine):
        name = str(node.target)
        shared = tied(net, op) or (op.source is not None and calls[op.source[0]] > 1)
        if name in done or op.window.transposed or shared or not bool(op.reads().any()):
            continue
        if not net.permits(split_layers, node):
            continue
        bare = replace(op, weight=held(op), plane=None)
        parts = _parts(bare, shape(source(node)), shape(node))
        if len(parts) == 1 or not _faster(net, bare, parts, shape(source(node))):
            continue
        last, made = parts[-1]
        if op.plane is not None and last.window == op.window:
            parts[-1] = replace(last, plane=op.plane), made
        elif op.plane is not None:
            split_plane(net, node, op)
        read, names = source(node), []
        for index, (part, size) in enumerate(parts):
            read = net.insert(f"{name}.{index}", part, read, after=node if index == 0 else read)
            read.meta["shape"] = size
            names.append(str(read.target))
        share = sum(macs(part, size) for part, size in parts) / macs(op, made)
        between = " and ".join(str(part.outputs) for part, _ in parts[:-1])
        net.split[name] = (
            tuple(names),
            f"{', '.join(names)} with {between} channels between: {share:.2f} times the multiply-accumulates",
        )
        net.replace(node, read)
        changed = True
    return changed


def split_plane(net: Net, node: fx.Node, op: Affine) -> None:
    """A layer with a plane becomes the layer without, plus a constant map."""
    assert op.plane is not None
    plane = Field(op.plane, torch.zeros_like(op.bias), op.window, (), op.dtype, op.origin)
    net.set(node, replace(op, weight=held(op), plane=None, source=None))
    border = net.insert(f"{node.target}_border", plane, source(node), after=node)
    border.meta["shape"] = shape(node)
    with net.graph.inserting_after(border):
        total = net.graph.call_function(torch.ops.aten.add.Tensor, (node, border))
    total.meta["shape"] = shape(node)
    net.reroute(node, total)


Part = tuple[Affine, tuple[int, ...]]  # with the shape of what it makes
# Where nothing is timed, what a split leaves of the multiply-accumulates, at most: the network gets deeper by it, which
# three layers of a VGG-16 were for 0.89 of theirs each.
_WORTH = 0.5


def _faster(net: Net, op: Affine, parts: list[Part], read: tuple[int, ...]) -> bool:
    """Whether the parts take less time than the layer, or, without a clock, so much less work that they should."""
    if net.clock is None:
        return sum(macs(*part) for part in parts) <= _WORTH * macs(op, parts[-1][1])
    inputs = [read, *(size for _, size in parts[:-1])]
    return sum(net.clock(part, size) for (part, _), size in zip(parts, inputs, strict=True)) < net.clock(op, read)


def _parts(op: Affine, read: tuple[int, ...], made: tuple[int, ...]) -> list[Part]:
    """The layers in sequence that do what one does, in the way with the least work: the layer itself, if that is it."""
    best: tuple[Part, Part] | None = None
    for way in _ways(op):
        between = way.between(op, read, made)
        # Parameters too are to be fewer: with strides, or paddings, they do not follow the work.
        most = min(way.most(op, math.prod(between[2:]), math.prod(made[2:])), way.most(op, 1, 1))
        most = min(most, LARGEST)
        if most == 0 or way.needs_more(op, most) or (pair := way.split(op, most)) is None:
            continue
        first, second = pair
        channels = list(between)
        channels[op.channel_dim] = first.outputs
        found = (first, tuple(channels)), (second, made)
        if best is None or sum(macs(*part) for part in found) < sum(macs(*part) for part in best):
            best = found
    if best is None:
        return [(op, made)]
    (first, size), (second, _) = best
    return [*_parts(first, read, size), *_parts(second, size, made)]


@dataclass(frozen=True)
class _Way:
    """One way to lay the weight out as matrices.

    Attributes:
        early: for every axis whether its taps are in the first layer.
        blocks: what there is a matrix for: ``"group"``, ``"output"`` or ``"input"``.
    """

    early: tuple[bool, ...]
    blocks: str

    def between(self, op: Affine, read: tuple[int, ...], made: tuple[int, ...]) -> tuple[int, ...]:
        """The shape between the two layers; its channels are those of the input."""
        sizes = (b if early else a for early, a, b in zip(self.early, read[2:], made[2:], strict=True))
        return (*read[:2], *sizes) if op.window.kernel else read

    def most(self, op: Affine, between: int, made: int) -> int:
        """The largest rank that needs less work, for so many positions between the two layers and behind them."""
        rows, columns = self._size(op)
        # A number more for every channel between: the bias that is emitted with it.
        return (rows * columns * made - 1) // (rows * made + (columns + 1) * between)

    def needs_more(self, op: Affine, most: int) -> bool:
        """Whether a part of the first matrix shows that its rank is larger."""
        late, early = self._taps(op)
        rows, columns = sample_size(*self._size(op), most)
        outputs = 1 if self.blocks == "output" else math.ceil(rows / late)
        inputs = 1 if self.blocks == "input" else math.ceil(columns / early)
        # Taken before it is read: of a large layer only this part comes to be in float64.
        part = taken(op, torch.arange(op.outputs) < outputs, torch.arange(op.size[1]) < inputs)
        weight = replace(op, weight=part).weight.unsqueeze(0)
        return needs_more(weight.permute(self._order()).reshape(outputs * late, inputs * early)[:rows, :columns])

    def split(self, op: Affine, most: int) -> tuple[Affine, Affine] | None:
        """The two layers, or None where a matrix needs a larger rank than `most`."""
        weight = op.weight.reshape(op.groups, -1, *op.size[1:]).permute(self._order())
        found = factors(weight.reshape(-1, *self._size(op)), most, op.dtype)
        return None if found is None else self._layers(op, *found)

    def _layers(self, op: Affine, left: Tensor, right: Tensor) -> tuple[Affine, Affine]:
        """The layers whose weights are the factors (N, A, r) and (N, r, B)."""
        rank, per_group = right.shape[1], op.outputs // op.groups
        early, late = (_window(op.window, self.early, first) for first in (True, False))
        firsts, seconds = op.groups, op.groups
        if self.blocks == "input":
            firsts *= op.size[1]
            left = left.reshape(op.groups, op.size[1], per_group, *late.kernel, rank)
            left = left.movedim(-1, 2).flatten(1, 2).transpose(1, 2)  # (g, O / g, I r / g, *late)
        else:
            seconds *= per_group if self.blocks == "output" else 1
            left = left.reshape(op.outputs, *late.kernel, rank).movedim(-1, 1)  # (O, r, *late)
        left = left.reshape(op.outputs, -1, *late.kernel)
        right = right.reshape(-1, op.inputs // firsts, *early.kernel)
        first = Affine(right, right.new_zeros(len(right)), early, firsts, op.dtype, origin=op.origin)
        return first, Affine(left, op.bias, late, seconds, op.dtype, origin=op.origin)

    def _size(self, op: Affine) -> tuple[int, int]:
        """Rows and columns of every matrix."""
        late, early = self._taps(op)
        outputs = 1 if self.blocks == "output" else op.outputs // op.groups
        return outputs * late, early * (1 if self.blocks == "input" else op.size[1])

    def _taps(self, op: Affine) -> tuple[int, int]:
        """Taps of the second layer and of the first."""
        late, early = (_window(op.window, self.early, first).kernel for first in (False, True))
        return math.prod(late), math.prod(early)

    def _order(self) -> list[int]:
        """The dimensions of a weight (g, O / g, I / g, *kernel): those of the blocks, of the rows, of the columns."""
        late, early = ([axis + 3 for axis, e in enumerate(self.early) if e == first] for first in (False, True))
        return [0, 2, 1, *late, *early] if self.blocks == "input" else [0, 1, *late, 2, *early]


def _ways(op: Affine) -> Iterator[_Way]:
    """The ways that differ; an axis with one tap is nothing to deal out, and goes with the second layer."""
    choices = [(False, True) if k > 1 else (False,) for k in op.window.kernel]
    kinds = ["group"]
    if op.window.kernel:
        kinds += ["output"] * (op.outputs > op.groups) + ["input"] * (op.size[1] > 1)
    for early, blocks in itertools.product(itertools.product(*choices), kinds):
        yield _Way(tuple(early), blocks)


def _window(window: Window, early: tuple[bool, ...], first: bool) -> Window:
    """What one of the layers has of a window: the axes whose taps it has; along the others it reads one position."""
    parts = ((window.kernel, 1), (window.stride, 1), (window.padding, 0), (window.dilation, 1))
    return Window(
        *(tuple(v if e == first else none for v, e in zip(values, early, strict=True)) for values, none in parts)
    )
