"""The graph that passes rewrite: an fx graph whose layers and rectifiers are calls that stand for records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from layercollapse.compiler.ir.names import identifier
from layercollapse.compiler.ir.records import Affine, AnyOp, Op
from layercollapse.compiler.ir.weights import computed
from layercollapse.graph.aten import packet, row
from layercollapse.graph.memory import Memory
from layercollapse.graph.meta import DTYPE, SHAPE

aten = torch.ops.aten


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

    def copy(self) -> Net:
        """A net of its own over the same records and tensors, none of which is ever changed."""
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.graph, {}))
        new = Net(graph, self.out_spec)
        new.ops, new.tensors, new.parameters = dict(self.ops), dict(self.tensors), set(self.parameters)
        new.frozen, new.buffers, new.trains = set(self.frozen), set(self.buffers), self.trains
        new.memory = self.memory
        return new

    def op(self, node: Any) -> Op | None:
        """The record that a node stands for, or None."""
        return self.ops.get(str(node.target)) if isinstance(node, fx.Node) and node.op == "call_module" else None

    def tensor(self, node: Any) -> Tensor | None:
        """The tensor of the model that a node is, or None."""
        return self.tensors[str(node.target)] if isinstance(node, fx.Node) and node.op == "get_attr" else None

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
        SHAPE[node] = SHAPE[source]
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


def shape(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node's tensor for the example inputs; channels may have been dropped since."""
    return SHAPE[node]


def dtype(node: fx.Node) -> torch.dtype:
    """What a node's tensor had in the captured graph; float32 for nodes that passes made."""
    return DTYPE.get(node) or torch.float32


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
    if not (isinstance(a, fx.Node) and isinstance(b, fx.Node)) or SHAPE.get(a) is None:
        return None
    if not SHAPE.get(b) == SHAPE[a] == SHAPE.get(node):
        return None
    one_dtype = len({DTYPE[x] for x in (a, b, node) if x in DTYPE}) < 2
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
        if some in seen or row(some).one_size:
            continue
        seen.add(some)
        reads = [x for x in some.all_input_nodes if x.op != "get_attr"]
        # What reads several tensors has the size of the largest of them, and a size that it is given may be any.
        if not reads or any(SHAPE.get(x) is None for x in reads):
            return False
        waiting += reads
    return True


def tied(net: Net, op: Affine | None) -> bool:
    """Whether a layer's weight is that of an embedding too: one of its own would be the largest tensor once more."""
    return op is not None and op.source is not None and identifier(op.source[0]) in net.tensors


def shared(net: Net, op: Affine) -> bool:
    """Whether the weight of a layer of the net is used elsewhere as well."""
    return tied(net, op) or (op.source is not None and net.calls()[op.source[0]] > 1)
