"""The rule that removes channels which no layer reads, from the layers that make them to the layers that would."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from layercollapse.collapse.carry import VIEWS, carry
from layercollapse.collapse.ir import Affine, Field, Net, Rectify, Scale, operands, shape, source
from layercollapse.nodes import packet

aten = torch.ops.aten


@dataclass
class _Class:
    """Tensors whose channels stand or fall together.

    Attributes:
        channels: number of channels C.
        members: node -> how many neighbouring entries of it one channel is (H·W after a flatten, else 1).
        dims: node -> channel dimension.
        readers: nodes of affine layers that mix the channels, with the member that each reads.
        frozen: whether something else reads or makes the channels, so that none may go.
    """

    channels: int
    members: dict[fx.Node, int] = field(default_factory=dict)
    dims: dict[fx.Node, int] = field(default_factory=dict)
    readers: list[tuple[fx.Node, int]] = field(default_factory=list)
    frozen: bool = False


def drop_unread_channels(net: Net) -> bool:
    """A channel goes if every layer that reads it has only zeros for it."""
    changed = False
    for group in _classes(net):
        if group.frozen or not group.readers:
            continue
        needed = torch.zeros(group.channels, dtype=torch.bool)
        for node, repeat in group.readers:
            op = net.affine(node)
            assert op is not None
            needed |= op.reads().reshape(group.channels, repeat).any(1)
        if bool(needed.all()) or not bool(needed.any()):
            continue
        _drop(net, group, needed)
        changed = True
    return changed


def _classes(net: Net) -> list[_Class]:
    of: dict[fx.Node, _Class] = {}

    def join(node: fx.Node, *others: fx.Node, repeat: int = 1) -> None:
        """Put a node into the class of other tensors that share its channels."""
        first = of[others[0]]
        for other in others[1:]:
            second = of[other]
            if second is first:
                continue
            if second.channels != first.channels or second.members[other] != first.members[others[0]]:
                first.frozen = second.frozen = True
                continue
            first.members.update(second.members)
            first.dims.update(second.dims)
            first.readers += second.readers
            first.frozen |= second.frozen
            for member in second.members:
                of[member] = first
        first.members[node] = first.members[others[0]] * repeat
        first.dims[node] = dims[node]
        of[node] = first

    def start(node: fx.Node, channels: int, frozen: bool = False) -> None:
        of[node] = _Class(channels, {node: 1}, {node: dims.get(node, 1)}, frozen=frozen)

    dims: dict[fx.Node, int] = {}
    for node in net.graph.nodes:
        op, pair = net.op(node), operands(node)
        reads = source(node) if op is not None else None
        matches = reads is not None and dims.get(reads) == getattr(op, "channel_dim", None)
        if op is not None:
            dims[node] = op.channel_dim
        if isinstance(op, Affine):
            assert reads is not None
            if op.depthwise and matches:
                join(node, reads)
                continue
            start(node, op.outputs, frozen=op.groups > 1)
            if matches and op.groups == 1:
                of[reads].readers.append((node, of[reads].members[reads]))
            else:
                of[reads].frozen = True
        elif isinstance(op, Field):
            start(node, len(op.bias))
        elif isinstance(op, Scale | Rectify) and matches:
            join(node, reads)  # type: ignore[arg-type]
        elif pair is not None and dims.get(pair[0]) == dims.get(pair[1]) is not None:
            dims[node] = dims[pair[0]]
            join(node, *pair)
        elif node.op == "call_function" and (place := _carried(node, dims)) is not None:
            dims[node], repeat = place
            join(node, node.all_input_nodes[0], repeat=repeat)
        else:
            start(node, 0, frozen=True)
            for other in node.all_input_nodes:
                of[other].frozen |= packet(node) is not aten.sym_size  # a size that is read is not that of channels
    return list({id(group): group for group in of.values()}.values())


def _carried(node: fx.Node, dims: dict[fx.Node, int]) -> tuple[int, int] | None:
    """Where an operation without weights puts the channels, if these may become fewer; see `carry`."""
    first = node.args[0] if node.args else None
    if not isinstance(first, fx.Node) or first not in dims:
        return None
    if any(other.meta.get("shape") is not None for other in node.all_input_nodes[1:]):
        return None
    place = carry(node, dims[first])
    if place is not None and packet(node) in VIEWS and not isinstance(node.args[1][-1], int):  # type: ignore[index]
        return None
    return place


def _drop(net: Net, group: _Class, keep: Tensor) -> None:
    for node, repeat in group.readers:
        reader = net.affine(node)
        assert reader is not None
        net.set(node, replace(reader, weight=reader.weight[:, keep.repeat_interleave(repeat)], source=None))
    for node, repeat in group.members.items():
        rows = keep.repeat_interleave(repeat)
        op = net.op(node)
        if isinstance(op, Affine):
            plane = None if op.plane is None else op.plane[rows]
            groups = int(rows.sum()) if op.depthwise else op.groups
            kept = replace(op, weight=op.weight[rows], bias=op.bias[rows], plane=plane, groups=groups, source=None)
            net.set(node, kept)
        elif isinstance(op, Field):
            net.set(node, replace(op, plane=None if op.plane is None else op.plane[rows], bias=op.bias[rows]))
        elif isinstance(op, Scale):
            net.set(node, replace(op, scale=op.scale[rows], shift=op.shift[rows]))
        elif isinstance(op, Rectify) and op.slope is not None:
            net.set(node, replace(op, slope=op.slope[rows]))
        elif packet(node) in VIEWS:
            node.args = (node.args[0], [*node.args[1][:-1], int(rows.sum())])  # type: ignore[index,misc]
        size = list(shape(node))
        size[group.dims[node]] = int(rows.sum())
        node.meta["shape"] = tuple(size)
