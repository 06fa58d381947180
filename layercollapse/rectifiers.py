"""The rectifiers the package knows: how they are called from Python, how they appear in an exported graph,
and where they bend.

The entropy probe reads the Python side of the table, the graph capture the aten side: a rectifier added here
is counted, named and collapsed everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

aten = torch.ops.aten


@dataclass(frozen=True)
class Rectifier:
    """One family of rectifiers.

    Attributes:
        kind: the name used in reports, for example ``"relu6"``.
        piecewise_linear: whether a neuron that stays in one piece is exactly affine.
        functions: the Python callables that compute it, in place or not.
        operators: the aten overload packets that compute it, in place or not.
    """

    kind: str
    piecewise_linear: bool
    functions: tuple
    operators: tuple


TABLE: tuple[Rectifier, ...] = (
    Rectifier(
        "relu",
        True,
        (F.relu, F.relu_, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_),
        (aten.relu, aten.relu_),
    ),
    Rectifier("relu6", True, (F.relu6,), (aten.relu6, aten.relu6_)),
    Rectifier("hardtanh", True, (F.hardtanh, F.hardtanh_), (aten.hardtanh, aten.hardtanh_)),
    Rectifier("leaky_relu", True, (F.leaky_relu, F.leaky_relu_), (aten.leaky_relu, aten.leaky_relu_)),
    Rectifier("prelu", True, (F.prelu, torch.prelu, torch.Tensor.prelu), (aten.prelu,)),
    Rectifier("gelu", False, (F.gelu,), (aten.gelu, aten.gelu_)),
    Rectifier("silu", False, (F.silu,), (aten.silu, aten.silu_)),
    Rectifier("mish", False, (F.mish,), (aten.mish, aten.mish_)),
    Rectifier("hardswish", False, (F.hardswish,), (aten.hardswish, aten.hardswish_)),
    Rectifier("elu", False, (F.elu, F.elu_), (aten.elu, aten.elu_)),
    Rectifier("celu", False, (F.celu, F.celu_, torch.celu, torch.celu_), (aten.celu, aten.celu_)),
    Rectifier("selu", False, (F.selu, F.selu_, torch.selu, torch.selu_), (aten.selu, aten.selu_)),
)

BY_KIND = {rectifier.kind: rectifier for rectifier in TABLE}
BY_FUNCTION = {function: rectifier for rectifier in TABLE for function in rectifier.functions}
BY_OPERATOR = {operator: rectifier for rectifier in TABLE for operator in rectifier.operators}


def describe(rectifier: Rectifier, args: tuple, kwargs: dict) -> tuple[str, float, float | None]:
    """Kind and bends of one call, from the arguments that follow its input.

    Args:
        rectifier: the row of the table that the call belongs to.
        args: positional arguments of the call after the input tensor.
        kwargs: keyword arguments of the call.

    Returns:
        ``(kind, lower, upper)``; upper is None for a rectifier without an upper bend. A hardtanh from 0 to 6 is
        called relu6: that is what an exported ReLU6 has become.
    """
    if rectifier.kind == "relu6":
        return "relu6", 0.0, 6.0
    if rectifier.kind == "hardtanh":
        lower = float(args[0] if len(args) > 0 else kwargs.get("min_val", -1.0))
        upper = float(args[1] if len(args) > 1 else kwargs.get("max_val", 1.0))
        return "relu6" if (lower, upper) == (0.0, 6.0) else "hardtanh", lower, upper
    return rectifier.kind, 0.0, None
