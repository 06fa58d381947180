"""What norms make of constants: where every value that a norm reads is constant, so is what it makes.

With the mean subtracted rounding errors may be all that is left, and no claim is made for them: see `mixing`. So
nothing is known here of values whose mean is more than `mixing.STEADY` of their deviations √(σ² + ε).
"""

from __future__ import annotations

import torch
from torch import fx

from layercollapse.compiler.analysis.bounds.mixing import STEADY
from layercollapse.compiler.analysis.dataflow import Channels, Facts, along
from layercollapse.compiler.ir.arguments import float64, named
from layercollapse.compiler.ir.graph import dtype, shape, source
from layercollapse.graph.aten import does, packet
from layercollapse.graph.meta import SHAPE
from layercollapse.graph.operations import Does

aten = torch.ops.aten


def normed(node: fx.Node, facts: Facts[Channels]) -> Channels | None:
    """The constants, float64 (C,), of what a norm makes, NaN where it varies; None of other nodes."""
    if does(node) is not Does.NORM or SHAPE.get(node) is None:
        return None
    size, over, eps = shape(node), named(node, "normalized_shape"), named(node, "eps")
    if eps is None and dtype(node) in (torch.float32, torch.float64):
        eps = torch.finfo(dtype(node)).eps
    if eps is None or isinstance(eps, fx.Node) or (over is not None and list(over) != [size[-1]]):
        return None  # or over positions, too
    if named(node, "use_input_stats") is False:
        return None  # by running statistics
    groups = named(node, "num_groups", size[1] if packet(node) is aten.instance_norm else 1)
    dim = 1 if over is None and len(size) > 2 else -1
    values = along(facts.get(source(node)), dim)
    weight, bias = named(node, "weight"), named(node, "bias")
    scale, shift = facts.net.tensor(weight), facts.net.tensor(bias)
    if (scale is None) != (weight is None) or (shift is None) != (bias is None):
        return None  # computed
    if values is None or len(values) != size[dim] or len(values) % groups:
        return None
    rows = values.unflatten(0, (groups, -1))
    mean = torch.zeros_like(rows[:, :1]) if packet(node) is aten.rms_norm else rows.mean(1, keepdim=True)
    deviation = ((rows - mean).square().mean(1, keepdim=True) + float(eps)).sqrt()
    entries = ((rows - mean) / deviation).masked_fill(mean.abs() > STEADY * deviation, torch.nan).flatten()
    entries = entries if scale is None else entries * float64(scale)
    return Channels(dim, entries if shift is None else entries + float64(shift))
