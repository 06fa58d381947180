"""The representation that the rules rewrite: an fx graph whose affine and rectifier calls are plain records.

Every affine layer, whatever module or function it came from, is one `Affine`; batch norms and rectifiers that
became linear are `Scale`; a branch that no longer reads its input is a `Field`. All algebra is done in float64 and
rounded once, when the model is emitted.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, fx

from layercollapse.collapse.weights import Float64, computed, held, nonzero
from layercollapse.memory import Memory
from layercollapse.nodes import by_dims, packet

aten = torch.ops.aten

_ONE_PIXEL = by_dims("adaptive_avg_pool", "adaptive_max_pool") | {aten.mean, aten.amax}


@dataclass(frozen=True)
class Window:
    """How a convolution moves over its input: one integer per spatial dimension, none for a linear layer.

    A transposed convolution has an output padding, None for the others: what is added to the size of its output.
    """

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] | None = None

    @property
    def transposed(self) -> bool:
        return self.output_padding is not None

    @property
    def uneven(self) -> bool:
        """Whether the same constant everywhere may come out as different values: some positions read fewer taps."""
        return any(self.padding) or self.transposed

    @property
    def extent(self) -> tuple[int, ...]:
        """Positions between the first and the last tap, both counted."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def pointwise(self) -> bool:
        """Whether every output position reads the input position it stands on, and no other."""
        return all(k == 1 for k in self.kernel) and not self.uneven and all(s == 1 for s in self.stride)


class Origin(enum.IntEnum):
    """What the values of a record were made of, the largest of what went into it: what they are in the emitted module.

    Buffers and numbers alone stay a buffer; parameters that take no gradient, one that takes none.
    """

    BUFFER = 0
    FROZEN = 1
    TRAINED = 2


@dataclass(frozen=True)
class Affine:
    """A linear layer or a convolution: ``y = conv(x, weight) + conv(ones, plane) + bias``.

    Attributes:
        weight: float64, (O, I / groups, *kernel), for a transposed convolution too; see `weights` for what is
            held.
        bias: float64, (O,).
        window: kernel, stride, padding, dilation; empty for a linear layer.
        groups: number of channel groups.
        plane: float64, (O, *kernel), or None: the weight of one more input channel that is 1 everywhere and padded
            with zeros like the others. It carries, exactly, constants that meet a zero padding. Always None for a
            window that is not `Window.uneven`, where it is part of the bias.
        dtype: what the layer is emitted in: what it computes in, also where the model casts float32 weights to it.
        source: names of the model's own weight and bias while the layer is unchanged, else None.
        origin: see `Origin`.
    """

    weight: Tensor
    bias: Tensor
    window: Window
    groups: int
    dtype: torch.dtype
    plane: Tensor | None = None
    source: tuple[str, str | None] | None = None
    origin: Origin = Origin.TRAINED

    @property
    def size(self) -> tuple[int, ...]:
        """Shape of the weight; reading the weight itself may compute it."""
        return held(self).size()

    @property
    def outputs(self) -> int:
        return self.size[0]

    @property
    def inputs(self) -> int:
        return self.size[1] * self.groups

    @property
    def depthwise(self) -> bool:
        return 1 < self.groups == self.outputs == self.inputs

    @property
    def channel_dim(self) -> int:
        return 1 if self.window.kernel else -1

    def dense(self) -> Tensor:
        """The weight without groups: (O, I, *kernel)."""
        return ungrouped(self.weight, self.groups)

    def spread(self, values: Tensor) -> Tensor:
        """A value for each input (I,) so that it broadcasts over (O, I / groups): (1, I) without groups."""
        return values[None] if self.groups == 1 else values[input_channels(self)]

    def pairs(self) -> Tensor:
        """Mask (O, I / groups) of the outputs and the inputs between which there is any weight."""
        return nonzero(self).flatten(2).any(2) if self.window.kernel else nonzero(self)

    def reads(self) -> Tensor:
        """Mask (I,) of the input channels that any weight multiplies."""
        return self._alive[0]

    def writes(self) -> Tensor:
        """Mask (O,) of the outputs that any weight feeds."""
        return self._alive[1]

    @cached_property
    def _alive(self) -> tuple[Tensor, Tensor]:
        pairs = self.pairs()
        return pairs.unflatten(0, (self.groups, self.outputs // self.groups)).any(1).flatten(), pairs.any(1)


Affine.weight = Float64("weight")  # type: ignore[assignment]


@dataclass(frozen=True)
class Scale:
    """``y = scale * x + shift``, per channel: a batch norm, or a rectifier that became linear.

    Attributes:
        scale: float64, (C,).
        shift: float64, (C,).
        channel_dim: 1 for (N, C, *spatial), -1 for (N, *, C).
        dtype: what the layer is emitted in.
        uniform: where a scale with one value for all channels came from, so that it stays one: ``"number"`` in the
            code, or ``"parameter"`` with one element; None for one value per channel.
        origin: see `Origin`.
    """

    scale: Tensor
    shift: Tensor
    channel_dim: int
    dtype: torch.dtype
    uniform: str | None = None
    origin: Origin = Origin.TRAINED

    @property
    def identity(self) -> bool:
        return bool(self.scale.eq(1).all() and self.shift.eq(0).all())

    @property
    def shifts_only(self) -> bool:
        return bool(self.scale.eq(1).all())

    @property
    def scales_only(self) -> bool:
        return bool(self.shift.eq(0).all())


@dataclass(frozen=True)
class Rectify:
    """A rectifier that still bends.

    Attributes:
        site: name of the site.
        kind: see `layercollapse.rectifiers`.
        channel_dim: 1 or -1.
        lower: the lower bend.
        upper: the upper bend, or None.
        slope: float64, (C,), the slope below the lower bend (LeakyReLU, PReLU), or None for a flat one.
        arguments: of the emitted module.
        dtype: what its parameters are emitted in.
        fixed: float64, (C,), or None: the value of each neuron that has only one, NaN for the others; known from the
            data or from bounds, where `facts` could not say it.
    """

    site: str
    kind: str
    channel_dim: int
    lower: float
    upper: float | None
    slope: Tensor | None
    arguments: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    fixed: Tensor | None = None


@dataclass(frozen=True)
class Field:
    """A map that does not depend on the data: ``y = conv(ones, plane) + bias``; its input gives only the size.

    Attributes:
        plane: float64, (O, *kernel), or None: y is the bias everywhere.
        bias: float64, (O,).
        window: of the convolution over the ones.
        before: the windows that lead from the size of the input to the size of the plane of ones.
        dtype: what it is emitted in.
        origin: see `Origin`.
    """

    plane: Tensor | None
    bias: Tensor
    window: Window
    before: tuple[Window, ...]
    dtype: torch.dtype
    origin: Origin = Origin.TRAINED

    @property
    def channel_dim(self) -> int:
        return 1 if self.window.kernel else -1


Op: TypeAlias = Affine | Scale | Rectify | Field
AnyOp = TypeVar("AnyOp", Affine, Scale, Rectify, Field)
# Name of a node -> the rules that do not act at it.
Omitted: TypeAlias = Callable[[str], Collection[Callable[..., object]]]


class Net:
    """A graph whose `call_module` nodes stand for records.

    Attributes:
        graph: placeholders are the inputs; `get_attr` nodes read `tensors`; every other call is an aten operation.
        ops: target of a `call_module` node -> its record. Each target is called once.
        tensors: parameters and buffers that no record holds, by name.
        parameters: the names in `tensors` that are parameters.
        frozen: names of the model's parameters that take no gradient; `trains`: whether there are others.
        buffers: names of the model's tensors that are no parameters.
        out_spec: how the outputs are packed.
        memory: whose memory the model's outputs are, which those of the emitted one may be; None: any.
        clock: measures a layer for an input shape, in ms; None to count multiply-accumulates instead.
        kept: pairs of layers that follow each other and stay two -> why.
        omitted: which rules do not act at a node of some name; see `permits`.
        repad: whether layers may merge that differ at the border then (see `merge.repadded`).
        repadded: those that did, first and last.
        settled: root of a region with sums -> its records, where `merge_paths` has found no better way to write it.
    """

    def __init__(self, graph: fx.Graph, out_spec: Any) -> None:
        self.graph = graph
        self.ops: dict[str, Op] = {}
        self.tensors: dict[str, Tensor] = {}
        self.parameters: set[str] = set()
        self.frozen: set[str] = set()
        self.buffers: set[str] = set()
        self.trains = True
        self.out_spec = out_spec
        self.memory: Sequence[Memory] | None = None
        self.clock: Callable[[Affine, tuple[int, ...]], float] | None = None
        self.kept: dict[tuple[str, str], str] = {}
        self.omitted: Omitted = lambda name: ()
        self.repad = False
        self.repadded: list[tuple[str, str]] = []
        self.settled: dict[str, list[Any]] = {}

    def copy(self) -> Net:
        """A net of its own over the same records and tensors, none of which is ever changed."""
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.graph, {}))
        new = Net(graph, self.out_spec)
        new.ops, new.tensors, new.parameters = dict(self.ops), dict(self.tensors), set(self.parameters)
        new.frozen, new.buffers, new.trains = set(self.frozen), set(self.buffers), self.trains
        new.memory = self.memory
        new.clock, new.kept, new.omitted = self.clock, dict(self.kept), self.omitted
        new.repad, new.repadded = self.repad, list(self.repadded)
        return new

    def op(self, node: Any) -> Op | None:
        """The record that a node stands for, or None."""
        return self.ops.get(str(node.target)) if isinstance(node, fx.Node) and node.op == "call_module" else None

    def affine(self, node: Any) -> Affine | None:
        """The node's record if it is an Affine, or None."""
        op = self.op(node)
        return op if isinstance(op, Affine) else None

    def records(self, kind: type[AnyOp]) -> Iterator[tuple[fx.Node, AnyOp]]:
        """The nodes whose record is of a type, with their records; the net may change meanwhile."""
        for node in list(self.graph.nodes):
            op = self.op(node)
            if isinstance(op, kind):
                yield node, op

    def calls(self) -> Counter[str]:
        """Weight of the model that a layer still has as it was -> of how many calls."""
        return Counter(op.source[0] for _, op in self.records(Affine) if op.source is not None)

    def permits(self, rule: Callable[..., object], *nodes: fx.Node) -> bool:
        """Whether a rule that may cost time is to act at all of these nodes."""
        return not any(rule in self.omitted(node.name) for node in nodes)

    def set(self, node: fx.Node, op: Op) -> None:
        """Give a node a new record; a weight that was deferred is computed now."""
        self.ops[str(node.target)] = computed(op)

    def insert(self, name: str, op: Op, source: fx.Node, after: fx.Node) -> fx.Node:
        """A new node for a record, under a name that is free, right after another node; shape as that of `source`."""
        target, count = name, 1
        while target in self.ops:
            count += 1
            target = f"{name}_{count}"
        self.ops[target] = computed(op)
        with self.graph.inserting_after(after):
            node = self.graph.call_module(target, (source,))
        node.meta["shape"] = source.meta["shape"]
        return node

    def reroute(self, node: fx.Node, by: fx.Node) -> None:
        """Let everything that reads `node`, but `by`, read `by`."""
        node.replace_all_uses_with(by, delete_user_cb=lambda user: user is not by)

    def replace(self, node: fx.Node, by: fx.Node) -> None:
        """Let `by` take the place of `node`, which goes."""
        node.replace_all_uses_with(by)
        self.erase(node)

    def erase(self, node: fx.Node) -> None:
        """Remove a node without users, and its record."""
        if node.op == "call_module":
            del self.ops[str(node.target)]
        self.graph.erase_node(node)

    def sweep(self) -> bool:
        """Remove the nodes that the outputs do not read."""
        changed = False
        for node in reversed(list(self.graph.nodes)):
            if not node.users and node.op not in ("placeholder", "output"):
                self.erase(node)
                changed = True
        for name in set(self.tensors) - {str(n.target) for n in self.graph.nodes if n.op == "get_attr"}:
            del self.tensors[name]
        return changed


def input_channels(op: Affine) -> Tensor:
    """int64 (O, I / groups): the input channel that each weight multiplies."""
    per_group = op.size[1]
    rows = max(1, op.outputs // op.groups)
    return (torch.arange(op.outputs) // rows * per_group)[:, None] + torch.arange(per_group)


def ungrouped(weight: Tensor, groups: int) -> Tensor:
    """A tensor (O, I / groups, ...) as (O, I, ...): zero but for the blocks of the groups."""
    if groups == 1:
        return weight
    blocks = weight.unflatten(0, (groups, -1))
    out = weight.new_zeros(groups, blocks.shape[1], groups, *weight.shape[1:])
    index = torch.arange(groups)
    out[index, :, index] = blocks
    return out.flatten(2, 3).flatten(0, 1)


def transposed(weight: Tensor, groups: int) -> Tensor:
    """A weight (O, I / groups, *kernel) as (I, O / groups, *kernel), which transposed convolutions have; or back."""
    blocks = weight.unflatten(0, (groups, -1))
    return blocks.transpose(1, 2).flatten(0, 1)


def shape(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node's tensor for the example inputs; channels may have been dropped since."""
    return node.meta["shape"]


def dtype(node: fx.Node) -> torch.dtype:
    """What a node's tensor had in the captured graph; float32 for nodes that rules made."""
    return node.meta.get("dtype", torch.float32)


def source(node: fx.Node) -> fx.Node:
    """The tensor that a record's node reads."""
    value = node.args[0]
    assert isinstance(value, fx.Node)
    return value


def sole_user(node: fx.Node) -> fx.Node | None:
    """The node that reads this one, if there is just one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def operands(node: Any) -> tuple[fx.Node, fx.Node] | None:
    """The two tensors of an elementwise sum ``a + b`` of one shape and dtype, or None."""
    if packet(node) is not aten.add or node.kwargs.get("alpha", 1) != 1:
        return None
    a, b = node.args[:2]
    if not (isinstance(a, fx.Node) and isinstance(b, fx.Node)) or a.meta.get("shape") is None:
        return None
    if not b.meta.get("shape") == a.meta["shape"] == node.meta.get("shape"):
        return None
    one_dtype = len({x.meta["dtype"] for x in (a, b, node) if "dtype" in x.meta}) < 2
    return (a, b) if one_dtype and alike(a, b) else None


def alike(a: fx.Node, b: fx.Node) -> bool:
    """Whether two tensors that have size one along a dimension in the example have the same size there in every case.

    Example maps of one pixel have the shape of pooled ones, and a single token that of a mean, which larger inputs
    broadcast.
    """
    ones = any(one == other == 1 for one, other in zip(shape(a)[1:], shape(b)[1:], strict=True))
    return len(shape(a)) < 3 or not ones or _pooled(a) == _pooled(b)


def _pooled(node: fx.Node) -> bool:
    """Whether a node's map has one pixel for inputs of every size: all that it is made of has been pooled."""
    waiting, seen = [node], set[fx.Node]()
    while waiting:
        some = waiting.pop()
        if some in seen or packet(some) in _ONE_PIXEL:
            continue
        seen.add(some)
        reads = [x for x in some.all_input_nodes if x.op != "get_attr"]
        # What reads several tensors has the size of the largest of them, and a size that it is given may be any.
        if not reads or any(x.meta.get("shape") is None for x in reads):
            return False
        waiting += reads
    return True
