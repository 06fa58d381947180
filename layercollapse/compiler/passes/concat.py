"""Passes for concatenations of channels: what the layers before and behind can do without them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from layercollapse.compiler.analysis.cost import macs
from layercollapse.compiler.ir.algebra import add, compose, mergeable, stack
from layercollapse.compiler.ir.channel_map import parts
from layercollapse.compiler.ir.graph import Net, shape, sole_user, source
from layercollapse.compiler.ir.records import Affine, ChannelAffine
from layercollapse.compiler.ir.scaling import after
from layercollapse.compiler.passes.context import Group, PassContext
from layercollapse.graph.meta import SHAPE

aten = torch.ops.aten


def flatten_concatenations(net: Net, context: PassContext) -> bool:
    """A concatenation of one tensor is the tensor; one that only another of the same dimension reads joins it."""
    changed = False
    for node in list(net.graph.nodes):
        joined = parts(node)
        if joined is None:
            continue
        user = sole_user(node)
        outer = parts(user)
        if len(joined[1]) == 1:
            net.replace(node, joined[1][0])
        elif outer is not None and outer[0] == joined[0] and outer[1].count(node) == 1:
            assert user is not None
            place = outer[1].index(node)
            user.args = ([*outer[1][:place], *joined[1], *outer[1][place + 1 :]], *user.args[1:])
            net.erase(node)
        else:
            continue
        changed = True
    return changed


def lift_through_concatenations(net: Net, context: PassContext) -> bool:
    """A scale behind a concatenation joins the layers that make its parts, if all of them can take it."""
    changed = False
    for node, op in net.records(ChannelAffine):
        joined = parts(source(node))
        if joined is None or joined[0] != op.channel_dim or sole_user(source(node)) is not node:
            continue
        taken, start = {}, 0
        for x in joined[1]:
            end = start + shape(x)[joined[0]]
            part = replace(op, scale=op.scale[start:end], shift=op.shift[start:end])
            record = after(net.op(x), part) if sole_user(x) is source(node) else None
            if record is not None:
                taken[x] = record
            start = end
        if len(taken) < len(joined[1]):  # also if a part stands there twice
            continue
        for x, record in taken.items():
            net.set(x, record)
        net.replace(node, source(node))
        changed = True
    return changed


def merge_neighbours(net: Net, context: PassContext) -> bool:
    """Two layers over one tensor whose outputs stand side by side are one layer, if that is no more work."""
    changed = False
    for node in list(net.graph.nodes):
        joined = parts(node)
        if joined is None:
            continue
        for left, right in zip(joined[1], joined[1][1:], strict=False):
            a, b = net.affine(left), net.affine(right)
            if a is None or b is None or left is right or source(left) is not source(right):
                continue
            if not list(left.users) == list(right.users) == [node] or a.channel_dim != joined[0]:
                continue
            if joined[1].count(left) + joined[1].count(right) > 2:
                continue
            if not context.permits(Group.PARALLEL, left, right):
                continue
            both = stack(a, b)
            size = list(shape(left))
            size[joined[0]] += shape(right)[joined[0]]
            if both is None or macs(both, tuple(size)) > macs(a, shape(left)) + macs(b, shape(right)):
                continue
            net.set(left, both)
            SHAPE[left] = tuple(size)
            node.args = ([x for x in joined[1] if x is not right], *node.args[1:])
            net.sweep()
            changed = True
            break
    return changed


def split_over_concatenations(net: Net, context: PassContext) -> bool:
    """A layer that alone reads a concatenation of affine layers is a sum of layers, each merged with its part.

    Only where this leaves no more layers and no more multiply-accumulates.
    """
    for node, op in net.records(Affine):
        cat = source(node)
        joined = parts(cat)
        if joined is None or joined[0] != op.channel_dim or sole_user(cat) is not node or op.groups > 1:
            continue
        if not context.permits(Group.CONCATENATION, node):
            continue
        new, gone = _pieces(net, node, op, joined[1])
        if not gone or not _pays(net, node, op, new, gone):
            continue
        total: fx.Node | None = None
        last = cat
        for index, (read, piece) in enumerate(new):
            layer = net.insert(f"{node.target}_{index}", piece, read, after=last)
            SHAPE[layer] = shape(node)
            last = layer
            if total is not None:
                with net.graph.inserting_after(layer):
                    last = net.graph.call_function(aten.add.Tensor, (total, layer))
                SHAPE[last] = shape(node)
            total = last
        assert total is not None
        net.replace(node, total)
        net.sweep()
        return True
    return False


def _pieces(
    net: Net, node: fx.Node, op: Affine, joined: list[fx.Node]
) -> tuple[list[tuple[fx.Node, Affine]], list[fx.Node]]:
    """The layers that the one is a sum of, with what each reads, and the layers that are merged into them."""
    new: list[tuple[fx.Node, Affine]] = []
    gone, start = [], 0
    for x in joined:
        end = start + shape(x)[op.channel_dim]
        piece = replace(op, weight=op.weight[:, start:end], source=None)
        if start:
            piece = replace(piece, bias=torch.zeros_like(op.bias), border_weight=None)
        start, read, layer = end, x, net.affine(x)
        if layer is not None and sole_user(x) is source(node) and joined.count(x) == 1 and mergeable(layer, piece):
            piece, read = compose(layer, piece), source(x)
            gone.append(x)
        for index, (other, sibling) in enumerate(new):
            both = add(sibling, piece) if other is read else None
            if both is not None:
                new[index] = (read, both)
                break
        else:
            new.append((read, piece))
    return new, gone


def _pays(net: Net, node: fx.Node, op: Affine, new: list[tuple[fx.Node, Affine]], gone: list[fx.Node]) -> bool:
    if len(new) > 1 + len(gone):
        return False
    old = [(node, op)] + [(x, layer) for x in gone if (layer := net.affine(x)) is not None]
    return sum(macs(piece, shape(node)) for _, piece in new) <= sum(macs(part, shape(x)) for x, part in old)
