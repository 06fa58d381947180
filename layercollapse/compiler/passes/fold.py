"""Passes that move constants and per-channel scales to where they cost nothing: into the weights next to them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from layercollapse.compiler.analysis.constants import constants
from layercollapse.compiler.analysis.dataflow import along
from layercollapse.compiler.ir.channel_map import affine_readers, carry
from layercollapse.compiler.ir.graph import Net, operands, sole_user, source, tied
from layercollapse.compiler.ir.records import Activation, Affine, ChannelAffine, ConstantMap, Origin, input_channels
from layercollapse.compiler.ir.scaling import add_border_weight, after, before
from layercollapse.compiler.ir.weights import raw_weight, scaled
from layercollapse.compiler.passes.context import PassContext
from layercollapse.graph.aten import does
from layercollapse.graph.operations import Does

aten = torch.ops.aten


def drop_identities(net: Net, context: PassContext) -> bool:
    """A scale of one and a shift of zero goes."""
    changed = False
    for node, op in net.records(ChannelAffine):
        if op.identity:
            net.replace(node, source(node))
            changed = True
    return changed


def fold_scales_up(net: Net, context: PassContext) -> bool:
    """A scale joins the affine layer, constant map or scale that it alone reads."""
    changed = False
    for node, op in net.records(ChannelAffine):
        producer = source(node)
        if sole_user(producer) is not node or tied(net, net.affine(producer)):
            continue
        folded = after(net.op(producer), op)
        if folded is not None:
            net.set(producer, folded)
            net.replace(node, producer)
            changed = True
    return changed


def fold_scales_down(net: Net, context: PassContext) -> bool:
    """A scale joins the affine layers that read it, when all its readers are such.

    A shift that meets a padding stays where it is, as a border weight would cost more, but where there is one already.
    """
    changed = False
    for node, op in net.records(ChannelAffine):
        readers = affine_readers(net, node, op.channel_dim)
        if not readers:
            continue
        folded = {}
        for user, places in readers.items():
            reader = net.affine(user)
            assert reader is not None
            if tied(net, reader):
                break
            scale, shift = (fill.repeat(reader.inputs) for fill in torch.tensor([[1.0], [0.0]], dtype=torch.float64))
            for start in places:
                scale[start : start + len(op.scale)] = op.scale
                shift[start : start + len(op.scale)] = op.shift
            folded[user] = before(replace(op, scale=scale, shift=shift), reader)
            if folded[user].border_weight is not None and reader.border_weight is None:
                break
        else:
            for user, taker in folded.items():
                net.set(user, taker)
            net.replace(node, source(node))
            changed = True
    return changed


def sink_scales(net: Net, context: PassContext) -> bool:
    """A scale moves behind a pooling, a mean over space or a change of shape, towards a layer that can take it.

    A maximum commutes with a scale only where the scale is not negative.
    """
    changed = False
    for node, op in net.records(ChannelAffine):
        user = sole_user(node)
        place = carry(user, op.channel_dim) if user is not None else None
        if user is None or place is None or (does(user) is Does.MAXIMUM and bool((op.scale < 0).any())):
            continue
        dim, repeat = place
        if does(user) in (Does.INTERPOLATE, Does.RESAMPLE) and not affine_readers(net, user, dim):
            continue  # more entries to scale
        if repeat > 1 and op.uniform is None and not affine_readers(net, user, dim):
            continue  # a value for every position: more parameters, for maps of one size
        scale, shift = (values.repeat_interleave(repeat) for values in (op.scale, op.shift))
        moved = replace(op, scale=scale, shift=shift, channel_dim=dim)
        user.replace_input_with(node, source(node))
        below = net.insert(str(node.target), moved, user, after=user)
        net.reroute(user, below)
        net.erase(node)
        changed = True
    return changed


def lift_through_sums(net: Net, context: PassContext) -> bool:
    """A scale behind a sum joins the layers that the sum adds: all of them, or one if it only shifts."""
    changed = False
    for node, op in net.records(ChannelAffine):
        total = source(node)
        pair = operands(total)
        if pair is None or pair[0] is pair[1] or sole_user(total) is not node:
            continue
        takers = []
        for x in sorted(pair, key=lambda x: isinstance(net.op(x), ConstantMap)):
            producer = net.op(x)
            if (
                sole_user(x) is total
                and isinstance(producer, Affine | ConstantMap)
                and producer.channel_dim == op.channel_dim
            ):
                takers.append(x)
        if op.shifts_only and takers:
            takers = takers[:1]
        elif len(takers) < 2:
            continue
        for index, taker in enumerate(takers):
            part = op if index == 0 else replace(op, shift=torch.zeros_like(op.shift))
            folded = after(net.op(taker), part)
            assert folded is not None
            net.set(taker, folded)
        net.replace(node, total)
        changed = True
    return changed


def fold_constants(net: Net, context: PassContext) -> bool:
    """The constant channels that a layer reads move into its bias; at a zero padding, into one of these channels.

    Every constant that meets a padding has the same shape at the border, so one channel can carry them all: the one
    with the largest value. A layer that reads nothing else keeps them as its border weight.
    """
    known = constants(net)
    changed = False
    for node, op in net.records(Affine):
        value = along(known.get(source(node)), op.channel_dim)
        if value is None:
            continue
        folded = _fold_grouped(op, value) if op.groups > 1 else _fold_constants(op, value)
        if folded is not None:
            net.set(
                node, replace(folded, weight=raw_weight(folded), origin=Origin.TRAINED)
            )  # of whatever made the constants
            changed = True
    return changed


def _fold_constants(op: Affine, value: Tensor) -> Affine | None:
    gone = ~value.isnan()
    filled = value.nan_to_num(0.0)
    carrier = None
    if op.geometry.border_sensitive and not bool(gone.all()):
        largest = int(filled.abs().argmax())
        if filled[largest] != 0:
            carrier = largest
            gone[carrier] = False
        else:
            gone &= filled == 0
    if not bool((op.reads() & gone).any()) and (carrier is None or op.border_weight is None):
        return None
    weight = op.weight
    part = (weight[:, gone] * _columns(filled[gone], weight)).sum(1)  # (O, *kernel)
    if carrier is None:
        return add_border_weight(replace(op, weight=scaled(op, column=(~gone).double()), source=None), part)
    if op.border_weight is not None:
        part = part + op.border_weight
    weight = weight.masked_fill(_columns(gone, weight), 0.0)
    weight[:, carrier] += part / filled[carrier]
    return replace(op, weight=weight, border_weight=None, source=None)


def _fold_grouped(op: Affine, value: Tensor) -> Affine | None:
    """Without a carrier, which would have to stand in every group: nonzero constants stay where they meet a padding."""
    filled = value.nan_to_num(0.0)
    constant = ~value.isnan()
    if op.geometry.border_sensitive and not bool(constant.all()):
        constant &= filled == 0
    taps = [1] * len(op.geometry.kernel)
    index, weight = input_channels(op), op.weight
    gone = constant[index].reshape(*index.shape, *taps)
    if not bool((weight.ne(0) & gone).any()):
        return None
    part = (weight * gone * filled[index].reshape(gone.shape)).sum(1)
    return add_border_weight(replace(op, weight=weight.masked_fill(gone, 0.0), source=None), part)


def cut_dead_layers(net: Net, context: PassContext) -> bool:
    """A layer whose weights are all zero becomes a constant map: it reads only the size of its input."""
    changed = False
    for node, op in net.records(Affine):
        if not bool(op.reads().any()):
            net.set(node, ConstantMap(op.border_weight, op.bias, op.geometry, (), op.dtype, op.origin))
            changed = True
    return changed


def raise_references(net: Net, context: PassContext) -> bool:
    """A constant map takes its size from an earlier tensor, when nothing but constant maps reads the one it has."""
    changed = False
    for node, op in net.records(ConstantMap):
        reference = source(node)
        if any(not isinstance(net.op(user), ConstantMap) for user in reference.users):
            continue
        previous, pair = net.op(reference), operands(reference)
        if isinstance(previous, ChannelAffine | Activation):
            node.replace_input_with(reference, source(reference))
        elif isinstance(previous, Affine | ConstantMap) and len(previous.geometry.kernel) == len(op.geometry.kernel):
            earlier = previous.before if isinstance(previous, ConstantMap) else ()
            net.set(node, replace(op, before=(*earlier, previous.geometry, *op.before)))
            node.replace_input_with(reference, source(reference))
        elif pair is not None:
            node.replace_input_with(reference, pair[0])
        else:
            continue
        changed = True
    return changed


def _columns(values: Tensor, weight: Tensor) -> Tensor:
    """(I,) so that it broadcasts over a weight (O, I, *kernel)."""
    return values.reshape(1, -1, *[1] * (weight.ndim - 2))
