"""Replace the rectifiers that never bend by what they are: one slope and one offset per neuron."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from layercollapse.compiler.analysis.constants import constants, rectified
from layercollapse.compiler.analysis.dataflow import along
from layercollapse.compiler.ir.graph import Net, shape, source
from layercollapse.compiler.ir.records import Activation, ChannelAffine, Origin
from layercollapse.compiler.passes.context import Group, PassContext
from layercollapse.entropy.layer import MIXED, OFF, SATURATED
from layercollapse.graph.meta import SHAPE

aten = torch.ops.aten


@dataclass(frozen=True)
class NeuronStates:
    """What is known of the neurons of a site: on has slope 1, off the rectifier's slope below its lower bend, saturated
    is the constant at its upper bend; for those that are mixed the rectifier stays.

    Attributes:
        states: int8 (C,), see `layercollapse.entropy.layer.STATES`.
    """

    states: Tensor

    @property
    def partial(self) -> bool:
        """Whether some neurons bend, so that the rectifier stays for them."""
        return bool((self.states == MIXED).any())


@dataclass(frozen=True)
class ConstantInput:
    """A site whose input is one value for every neuron, whatever the data: the rectifier is evaluated there.

    Attributes:
        values: float64 (C,).
    """

    values: Tensor

    @property
    def partial(self) -> bool:
        """False: nothing is left that bends."""
        return False


Known: TypeAlias = NeuronStates | ConstantInput


def bending_sites(net: Net) -> set[str]:
    """The sites whose rectifier can be replaced: all but those in a form that has no record."""
    return {op.site for _, op in net.records(Activation)}


def constant_sites(net: Net) -> dict[str, ConstantInput]:
    """The sites whose input holds one value per channel whatever the data."""
    known = constants(net)
    inputs = {}
    for node, op in net.records(Activation):
        value = along(known.get(source(node)), op.channel_dim)
        if value is not None and not bool(value.isnan().any()):
            inputs[op.site] = ConstantInput(value)
    return inputs


def linearize(net: Net, known: Mapping[str, Known], context: PassContext | None = None) -> bool:
    """Turn rectifiers into scales, in place; on those that stay, note the neurons that have one value.

    Args:
        net: the net to change.
        known: site -> what is counted or proven of its neurons.
        context: where it is permitted; None: everywhere.

    Returns:
        Whether any rectifier has gone, or any neuron has one value.
    """
    changed = False
    for node, op in net.records(Activation):
        if op.site not in known:
            continue
        what = known[op.site]
        if isinstance(what, NeuronStates) and what.partial:
            # Each of the others is one that has a single value.
            net.set(node, replace(op, fixed=_line(op, what).shift.masked_fill(what.states == MIXED, torch.nan)))
            changed = True
            continue
        if context is not None and not context.permits(Group.RECTIFIERS, node):
            continue
        changed = True
        net.set(node, _line(op, what))
    return changed


def replace_neurons(net: Net, known: Mapping[str, Known]) -> None:
    """Give every neuron that does not bend its line, in place and with no pass: what removing it changes by itself.

    Where others of its site bend, the rectifier is computed for all of them, and its values are taken for these.
    """
    linearize(net, known)
    for node, op in net.records(Activation):
        if op.fixed is None:
            continue
        what = known[op.site]
        assert isinstance(what, NeuronStates)
        line = net.insert(f"{node.target}_line", _line(op, what), source(node), after=node)
        net.set(node, replace(op, fixed=None))
        name = f"{line.target}_steady"
        net.tensors[name] = (what.states != MIXED).reshape(
            -1, *[1] * (len(shape(node)) - 2 if op.channel_dim == 1 else 0)
        )
        with net.graph.inserting_after(line):
            steady = net.graph.get_attr(name)
        with net.graph.inserting_after(steady):
            both = net.graph.call_function(aten.where.self, (steady, line, node))
        SHAPE[both] = shape(node)
        net.reroute(node, both)


def _line(op: Activation, known: Known) -> ChannelAffine:
    """The line that each neuron stays on; anything for those that are mixed."""
    if isinstance(known, ConstantInput):
        values = rectified(op, known.values)
        return ChannelAffine(torch.zeros_like(values), values, op.channel_dim, op.dtype)
    states = known.states
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
