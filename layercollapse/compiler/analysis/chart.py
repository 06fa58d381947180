"""A network as people draw it: its layers and rectifiers, what joins and what bends, and the linear regions."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import fx

from layercollapse.compiler.analysis.cost import macs
from layercollapse.compiler.analysis.outline import in_words
from layercollapse.compiler.ir.graph import Net, shape
from layercollapse.compiler.ir.records import Activation, Affine, ChannelAffine
from layercollapse.graph.aten import does, packet
from layercollapse.graph.meta import DTYPE, ORIGIN
from layercollapse.graph.operations import MOVES, Does

# What has one tensor go through it, and is linear, is not shown.
_PASSES = {
    *MOVES,
    Does.SAME,
    Does.DROPOUT,
    Does.CAST,
    Does.TURN,
    Does.SELECT,
    Does.PAD,
    Does.AVERAGE,
    Does.INTERPOLATE,
    Does.RESAMPLE,
    Does.BATCH_NORM,
} - {Does.EXTREME, Does.REDUCE}
_JOINS = {Does.SUM: "sum", Does.JOIN: "concatenation", Does.STACK: "concatenation"}


@dataclass(frozen=True)
class Box:
    """What is shown of a network.

    Attributes:
        kind: ``"input"``, ``"layer"``, ``"rectifier"``, ``"join"`` (a sum or a concatenation), ``"operation"`` (any
            other that is not linear) or ``"output"``.
        name: of the input, the module, the site or the operation.
        what: a layer in words, the kind of a rectifier, else empty.
        reads: the places of the boxes that it reads.
        region: the number of its linear region; None of what is in none.
        weights: number of weights of a layer.
        macs: multiply-accumulates of a layer for one sample of the example inputs.
    """

    kind: str
    name: str
    what: str = ""
    reads: tuple[int, ...] = ()
    region: int | None = None
    weights: int = 0
    macs: int = 0

    @property
    def linear(self) -> bool:
        """Whether it is a linear function of what it reads."""
        return self.kind in ("layer", "join") or (self.kind, self.what) == ("rectifier", "linear")


class Region(NamedTuple):
    """Layers that make one tensor, with no rectifier and nothing else that is not linear between them.

    Attributes:
        layers: their names, in execution order.
        macs: their multiply-accumulates for one sample.
        reads: names of what they read.
        read_by: names of what reads them.
    """

    layers: tuple[str, ...]
    macs: int
    reads: tuple[str, ...]
    read_by: tuple[str, ...]


def chart(net: Net, linear: Mapping[str, str]) -> tuple[Box, ...]:
    """The boxes of a net, in execution order.

    Reshapes, scales (batch norms), averages and all else that is linear and reads one tensor are not shown; nor is what
    is made of whole numbers alone, such as masks and positions.

    Args:
        net: as lowered.
        linear: captured node -> site, of the sites that the model has as lines already: they are rectifiers, too.
    """
    boxes, stands = list[Box](), dict[fx.Node, tuple[int, ...]]()
    for node in net.graph.nodes:
        reads = tuple(dict.fromkeys(place for read in node.all_input_nodes for place in stands.get(read, ())))
        if does(node) is Does.SIZE:
            continue
        box = None if _passes(node, reads, stands) else _box(net, node, reads, boxes, linear)
        stands[node] = reads if box is None else (len(boxes),)
        boxes += [] if box is None else [box]
    return _with_regions(boxes)


def regions(boxes: Sequence[Box]) -> dict[int, Region]:
    """The linear regions of a network by their number."""
    found = {}
    for number in sorted({box.region for box in boxes if box.region is not None}):
        inside = {place for place, box in enumerate(boxes) if box.region == number}
        layers = [boxes[place] for place in sorted(inside) if boxes[place].kind == "layer"]
        reads = {at for place in inside for at in boxes[place].reads} - inside
        after = (place for place, box in enumerate(boxes) if place not in inside and inside & {*box.reads})
        found[number] = Region(
            tuple(box.name for box in layers),
            sum(box.macs for box in layers),
            tuple(boxes[place].name for place in sorted(reads)),
            tuple(boxes[place].name for place in after),
        )
    return found


def _box(
    net: Net, node: fx.Node, reads: tuple[int, ...], boxes: Sequence[Box], linear: Mapping[str, str]
) -> Box | None:
    """What is shown of a node; None of nothing."""
    op = net.op(node)
    if isinstance(op, Affine):
        weights = max(1, math.prod(op.size))
        return Box("layer", str(node.target), in_words(op), reads, weights=weights, macs=macs(op, shape(node)))
    if isinstance(op, Activation):
        return Box("rectifier", op.site, op.kind, reads)
    if isinstance(op, ChannelAffine):
        site = linear.get(str(ORIGIN.get(node)))
        return None if site is None else Box("rectifier", site, "linear", reads)
    if node.op == "placeholder":
        return Box("input", node.name) if node.users else None
    if node.op == "output":
        return Box("output", "output", reads=reads)
    kind = does(node)
    if kind is not Does.TABLE and all(boxes[place].kind == "input" for place in reads) and _masks(node):
        return None
    name = str(getattr(packet(node), "__name__", packet(node))).strip("_")
    return Box("join", _JOINS[kind], reads=reads) if kind in _JOINS else Box("operation", name, reads=reads)


def _passes(node: fx.Node, reads: tuple[int, ...], stands: Mapping[fx.Node, tuple[int, ...]]) -> bool:
    """Whether a call is not shown: it is constant, or whole numbers, or linear in one tensor."""
    if node.op == "get_attr":
        return True
    if node.op != "call_function":
        return False
    kind = does(node)
    if not reads or _whole(node) or node.target is operator.getitem or kind in _PASSES:
        return True
    factors = [at for at, read in enumerate(node.args[:2]) if isinstance(read, fx.Node) and stands.get(read)]
    scales = kind is Does.PRODUCT and factors == [0]  # not a division by the tensor; a number comes second
    return len(reads) == 1 and (kind in _JOINS or scales)


def _whole(node: fx.Node) -> bool:
    """Whether a node gives whole numbers or truth values."""
    dtype = DTYPE.get(node)
    return dtype is not None and not (dtype.is_floating_point or dtype.is_complex)


def _masks(node: fx.Node) -> bool:
    """Whether all that a node is made of is whole numbers."""
    waiting, seen = list(node.all_input_nodes), set[fx.Node]()
    while waiting:
        some = waiting.pop()
        if some in seen:
            continue
        seen.add(some)
        if some.op == "placeholder" and not _whole(some):
            return False
        waiting += some.all_input_nodes
    return True


def _with_regions(boxes: Sequence[Box]) -> tuple[Box, ...]:
    """The boxes with the numbers of their regions: those that hold a layer. What several read is the end of one."""
    group = list(range(len(boxes)))
    readers = Counter(read for box in boxes for read in box.reads)

    def root(place: int) -> int:
        while group[place] != place:
            place = group[place]
        return place

    for place, box in enumerate(boxes):
        for read in box.reads if box.linear else ():
            if boxes[read].linear and readers[read] == 1:
                group[root(place)] = root(read)
    numbers = _numbered(root(place) for place, box in enumerate(boxes) if box.kind == "layer")
    return tuple(
        replace(box, region=numbers.get(root(place))) if box.linear else box for place, box in enumerate(boxes)
    )


def _numbered(values: Iterable[int]) -> dict[int, int]:
    """Numbers from 1 on, in the order in which values come."""
    return {value: number for number, value in enumerate(dict.fromkeys(values), 1)}
