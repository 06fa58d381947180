"""Replace the rectifiers that never bend by what they are: one slope and one offset per neuron."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from layercollapse.collapse.facts import constants, rectified
from layercollapse.collapse.ir import Net, Rectify, Scale, source
from layercollapse.counts import MIXED, OFF, SATURATED


def bending_sites(net: Net) -> set[str]:
    """The sites whose rectifier can be replaced: all but those in a form that has no record."""
    return {op.site for _, op in net.records(Rectify)}


def constant_sites(net: Net) -> dict[str, Tensor]:
    """The sites whose input holds one value per channel whatever the data: name -> these values, float64 (C,)."""
    known = constants(net)
    found = {}
    for node, op in net.records(Rectify):
        value = known.get(source(node), op.channel_dim)
        if value is not None and not bool(value.isnan().any()):
            found[op.site] = value
    return found


def linearize(net: Net, states: Mapping[str, Tensor | None]) -> bool:
    """Turn rectifiers into scales, in place; on those that stay, note the neurons that do not bend.

    Args:
        net: the net to change.
        states: site -> int8 (C,) states (see `layercollapse.counts.STATES`), counted or proven: on has slope 1, off
            the rectifier's slope below its lower bend, saturated is the constant at its upper bend. Where one is
            mixed the rectifier stays, and of the others those that are flat have one value, and those that are not a
            slope. None for a site of `constant_sites`, of any kind: its rectifier is evaluated.

    Returns:
        Whether any rectifier has gone, or any neuron has one value.
    """
    known = constants(net)
    changed = False
    for node, op in net.records(Rectify):
        if op.site not in states:
            continue
        state = states[op.site]
        if state is not None and bool((state == MIXED).any()):
            line = _scale(op, state)
            steady, flat = state != MIXED, line.scale == 0
            fixed = _where(steady & flat, line.shift)
            net.set(node, replace(op, fixed=fixed, straight=_where(steady & ~flat, line.scale)))
            changed |= fixed is not None
            continue
        if not net.permits(linearize, node):
            continue
        changed = True
        if state is not None:
            net.set(node, _scale(op, state))
            continue
        value = known.get(source(node), op.channel_dim)
        assert value is not None
        net.set(node, Scale(torch.zeros_like(value), rectified(op, value), op.channel_dim, op.dtype))
    return changed


def _where(mask: Tensor, values: Tensor) -> Tensor | None:
    """The values where a mask is set, NaN elsewhere; None for an empty mask."""
    return values.masked_fill(~mask, torch.nan) if bool(mask.any()) else None


def _scale(op: Rectify, states: Tensor) -> Scale:
    off, saturated = states == OFF, states == SATURATED
    scale = torch.ones(len(states), dtype=torch.float64)
    shift = torch.zeros_like(scale)
    if op.slope is None:
        scale[off], shift[off] = 0.0, op.lower
    else:
        scale[off] = op.slope[off]
    if op.upper is not None:
        scale[saturated], shift[saturated] = 0.0, op.upper
    return Scale(scale, shift, op.channel_dim, op.dtype)
