"""Replace the rectifiers that never bend by what they are: one slope and one offset per neuron."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from layercollapse.compiler.analysis.constants import constants, rectified
from layercollapse.compiler.ir.graph import Net, shape, source
from layercollapse.compiler.ir.records import Activation, ChannelAffine, Origin
from layercollapse.compiler.passes.context import Group, PassContext
from layercollapse.entropy.report import MIXED, OFF, SATURATED

aten = torch.ops.aten


def bending_sites(net: Net) -> set[str]:
    """The sites whose rectifier can be replaced: all but those in a form that has no record."""
    return {op.site for _, op in net.records(Activation)}


def constant_sites(net: Net) -> dict[str, Tensor]:
    """The sites whose input holds one value per channel whatever the data: name -> these values, float64 (C,)."""
    known = constants(net)
    found = {}
    for node, op in net.records(Activation):
        value = known.get(source(node), op.channel_dim)
        if value is not None and not bool(value.isnan().any()):
            found[op.site] = value
    return found


def linearize(net: Net, states: Mapping[str, Tensor], context: PassContext | None = None) -> bool:
    """Turn rectifiers into scales, in place; on those that stay, note the neurons that have one value.

    Args:
        net: the net to change.
        states: site -> int8 (C,) states (see `layercollapse.entropy.report.STATES`), counted or proven: on has slope 1,
            off the rectifier's slope below its lower bend, saturated is the constant at its upper bend. Where one is
            mixed the rectifier stays, and each of the others is one that has a single value. Or float64 (C,), a value
            of `constant_sites`, for any kind: the rectifier is evaluated there.
        context: where it is permitted; None: everywhere.

    Returns:
        Whether any rectifier has gone, or any neuron has one value.
    """
    changed = False
    for node, op in net.records(Activation):
        if op.site not in states:
            continue
        state = states[op.site]
        if mixed(state):
            net.set(node, replace(op, fixed=_scale(op, state).shift.masked_fill(state == MIXED, torch.nan)))
            changed = True
            continue
        if context is not None and not context.permits(Group.RECTIFIERS, node):
            continue
        changed = True
        net.set(node, _scale(op, state))
    return changed


def mixed(state: Tensor) -> bool:
    """Whether some neurons of a site bend, so that its rectifier stays for them."""
    return not state.is_floating_point() and bool((state == MIXED).any())


def replace_neurons(net: Net, states: Mapping[str, Tensor]) -> None:
    """Give every neuron that does not bend its line, in place and with no pass: what removing it changes by itself.

    Where others of its site bend, the rectifier is computed for all of them, and its values are taken for these.
    """
    linearize(net, states)
    for node, op in net.records(Activation):
        if op.fixed is None:
            continue
        state = states[op.site]
        line = net.insert(f"{node.target}_line", _scale(op, state), source(node), after=node)
        net.set(node, replace(op, fixed=None))
        name = f"{line.target}_steady"
        net.tensors[name] = (state != MIXED).reshape(-1, *[1] * (len(shape(node)) - 2 if op.channel_dim == 1 else 0))
        with net.graph.inserting_after(line):
            steady = net.graph.get_attr(name)
        with net.graph.inserting_after(steady):
            both = net.graph.call_function(aten.where.self, (steady, line, node))
        both.meta["shape"] = shape(node)
        net.reroute(node, both)


def _scale(op: Activation, states: Tensor) -> ChannelAffine:
    if states.is_floating_point():
        return ChannelAffine(torch.zeros_like(states), rectified(op, states), op.channel_dim, op.dtype)
    off, saturated = states == OFF, states == SATURATED
    scale = torch.ones(len(states), dtype=torch.float64)
    shift = torch.zeros_like(scale)
    if op.slope is None:
        scale[off], shift[off] = 0.0, op.lower
    else:
        scale[off] = op.slope[off]
    if op.upper is not None:
        scale[saturated], shift[saturated] = 0.0, op.upper
    origin = Origin.BUFFER if op.slope is None else Origin.TRAINED
    return ChannelAffine(scale, shift, op.channel_dim, op.dtype, origin=origin)
