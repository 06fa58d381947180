"""What norms make of constants: where every value that a norm reads is constant, so is what it makes.

With the mean subtracted rounding errors may be all that is left, and no claim is made for them: see `mixing`. So
nothing is known here of values whose mean is more than `mixing.STEADY` of their deviations √(σ² + ε).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from layercollapse.compiler.analysis.bounds.mixing import STEADY
from layercollapse.compiler.analysis.dataflow import Channels, Facts
from layercollapse.compiler.ir.arguments import argument, float64
from layercollapse.compiler.ir.graph import Net, dtype, shape
from layercollapse.graph.aten import does, packet
from layercollapse.graph.operations import Does

aten = torch.ops.aten


def normed(node: fx.Node, facts: Facts[Channels]) -> Channels | None:
    """The constants, float64 (C,), of what a norm makes, NaN where it varies; None of other nodes."""
    called, first = packet(node), node.args[0] if node.args else None
    if does(node) is not Does.NORM or node.kwargs or node.meta.get("shape") is None or not isinstance(first, fx.Node):
        return None
    dim, centred, groups = 1, True, 1
    places: tuple[int, int | None] = (2, 3)
    if called in (aten.layer_norm, aten.rms_norm):
        if list(argument(node, 1)) != [shape(node)[-1]]:
            return None  # over positions, too
        dim, centred = -1, called is aten.layer_norm
        places = (2, 3) if centred else (2, None)
        eps = argument(node, 4, 1e-5) if centred else argument(node, 3)
    elif called is aten.group_norm:
        groups, eps = int(argument(node, 1)), argument(node, 4, 1e-5)
    else:
        groups, places, eps = shape(node)[1], (1, 2), argument(node, 7)
        if not argument(node, 5):
            return None  # by running statistics
    if eps is None and dtype(node) in (torch.float32, torch.float64):
        eps = torch.finfo(dtype(node)).eps
    if eps is None or isinstance(eps, fx.Node):
        return None
    dim = dim if len(shape(node)) > 2 else -1
    read = facts.get(first)
    values = None if read is None else read.along(dim)
    scale, shift = (_stored(facts.net, None if place is None else argument(node, place)) for place in places)
    if values is None or scale is False or shift is False or len(values) != shape(node)[dim] or len(values) % groups:
        return None
    rows = values.unflatten(0, (groups, -1))
    mean = rows.mean(1, keepdim=True) if centred else torch.zeros_like(rows[:, :1])
    deviation = ((rows - mean).square().mean(1, keepdim=True) + float(eps)).sqrt()
    made = ((rows - mean) / deviation).masked_fill(mean.abs() > STEADY * deviation, torch.nan).flatten()
    made = made if scale is None else made * scale
    made = made if shift is None else made + shift
    return Channels(dim, made)


def _stored(net: Net, x: Any) -> Any:
    """A tensor of the model in float64; None if there is none, False if it is computed."""
    if x is None:
        return None
    return float64(net.tensors[str(x.target)]) if isinstance(x, fx.Node) and x.op == "get_attr" else False
