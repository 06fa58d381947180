"""What norms make of constants: where every value that a norm reads is constant, so is what it makes.

With the mean subtracted rounding errors may be all that is left, and no claim is made for them: see `mixing`. So
nothing is known here of values whose mean is more than `mixing.STEADY` of their deviations √(σ² + ε).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from layercollapse.compiler.analysis.bounds.mixing import STEADY
from layercollapse.compiler.ir.arguments import argument, float64
from layercollapse.compiler.ir.graph import Net, dtype, shape
from layercollapse.graph.aten import packet

aten = torch.ops.aten


def normed(net: Net, node: fx.Node, known: Callable[[fx.Node, int], Tensor | None]) -> tuple[int, Tensor] | None:
    """Channel dimension and constants (C,) of what a norm makes, NaN where it varies; None if nothing is known.

    Args:
        net: that the node is in.
        node: any node.
        known: the constants of a node along a dimension, float64 (C,), NaN where a channel varies, or None.
    """
    called, arguments = packet(node), node.args
    if called not in _NORMS or node.kwargs or node.meta.get("shape") is None or not isinstance(arguments[0], fx.Node):
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
    values = known(arguments[0], dim if len(shape(node)) > 2 else -1)
    scale, shift = (_stored(net, None if place is None else argument(node, place)) for place in places)
    if values is None or scale is False or shift is False or len(values) != shape(node)[dim] or len(values) % groups:
        return None
    rows = values.unflatten(0, (groups, -1))
    mean = rows.mean(1, keepdim=True) if centred else torch.zeros_like(rows[:, :1])
    deviation = ((rows - mean).square().mean(1, keepdim=True) + float(eps)).sqrt()
    made = ((rows - mean) / deviation).masked_fill(mean.abs() > STEADY * deviation, torch.nan).flatten()
    made = made if scale is None else made * scale
    made = made if shift is None else made + shift
    return dim if len(shape(node)) > 2 else -1, made


_NORMS = {aten.layer_norm, aten.rms_norm, aten.group_norm, aten.instance_norm}


def _stored(net: Net, x: Any) -> Any:
    """A tensor of the model in float64; None if there is none, False if it is computed."""
    if x is None:
        return None
    return float64(net.tensors[str(x.target)]) if isinstance(x, fx.Node) and x.op == "get_attr" else False
