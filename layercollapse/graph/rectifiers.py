"""The rectifiers the package knows: how they are called from Python, how they appear in an exported graph,
and where they bend. Those that a model writes out (`layercollapse.graph.patterns`) become one of them.

The entropy probe reads the Python side of the table, the graph capture the aten side: a rectifier added here
is counted, named and collapsed everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten

# CLIP's approximation of a GELU, and the cubic term of the one by tanh.
QUICK, CUBIC = 1.702, 0.044715


def quick_gelu(x: Tensor) -> Tensor:
    """``x * sigmoid(1.702 x)``, for which aten has no operation; any shape and floating dtype -> the same."""
    return x * torch.sigmoid(QUICK * x)


def tanh_gelu(x: Tensor, factor: float) -> Tensor:
    """``x / 2 * (1 + tanh(factor * (x + 0.044715 x³)))``: the GELU by tanh of a model that writes √(2/π) with few
    digits, which float64 can tell; any shape and floating dtype -> the same.
    """
    return 0.5 * x * (1 + torch.tanh(factor * (x + CUBIC * x**3)))


# A call that `layercollapse.linearize` has made linear: scale * x + shift per channel, each there or not. It is an
# operation of its own, so that it is seen where the rectifier was, also by torch.export. With neither, `view` says that
# the result may lie where x does.
_library = torch.library.Library("layercollapse", "FRAGMENT")
_library.define("linear_site(Tensor x, Tensor? scale, Tensor? shift, int channel_dim, bool view=False) -> Tensor")


def _linear_site(x: Tensor, scale: Tensor | None, shift: Tensor | None, channel_dim: int, view: bool = False) -> Tensor:
    if scale is None and shift is None:
        return x.view_as(x) if view else x.clone()
    shape = [1] * x.ndim
    shape[channel_dim] = -1
    y = x if scale is None else x * scale.view(shape)
    return y if shift is None else y + shift.view(shape)


_library.impl("linear_site", _linear_site, "CompositeImplicitAutograd")
linear_site = torch.ops.layercollapse.linear_site


@dataclass(frozen=True)
class Rectifier:
    """One family of rectifiers.

    Attributes:
        kind: the name used in reports, for example ``"relu6"``.
        piecewise_linear: whether a neuron that stays in one piece is exactly affine.
        functions: the Python callables that compute it, in place or not.
        operators: the aten overload packets that compute it, in place or not, and the functions that stand for it in
            a graph.
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
    Rectifier("rrelu", True, (F.rrelu, F.rrelu_, torch.rrelu, torch.rrelu_), (aten.rrelu, aten.rrelu_)),
    Rectifier("gelu", False, (F.gelu,), (aten.gelu, aten.gelu_, tanh_gelu)),
    Rectifier("quick_gelu", False, (), (quick_gelu,)),
    Rectifier("silu", False, (F.silu,), (aten.silu, aten.silu_)),
    Rectifier("mish", False, (F.mish,), (aten.mish, aten.mish_)),
    Rectifier("hardswish", False, (F.hardswish,), (aten.hardswish, aten.hardswish_)),
    Rectifier("elu", False, (F.elu, F.elu_), (aten.elu, aten.elu_)),
    Rectifier("celu", False, (F.celu, F.celu_, torch.celu, torch.celu_), (aten.celu, aten.celu_)),
    Rectifier("selu", False, (F.selu, F.selu_, torch.selu, torch.selu_), (aten.selu, aten.selu_)),
    Rectifier("linear", True, (linear_site,), (linear_site,)),
)

# Calls that are rectifiers for some of their arguments only; what they are then is one of the above.
SOMETIMES: tuple[Rectifier, ...] = (
    Rectifier(
        "clamp",
        True,
        tuple(getattr(owner, name) for owner in (torch, torch.Tensor) for name in ("clamp", "clamp_", "clip", "clip_")),
        (aten.clamp, aten.clamp_, aten.clip, aten.clip_),
    ),
    Rectifier(
        "clamp_min",
        True,
        tuple(getattr(owner, name) for owner in (torch, torch.Tensor) for name in ("clamp_min", "clamp_min_")),
        (aten.clamp_min, aten.clamp_min_),
    ),
    Rectifier(
        "threshold",
        True,
        (F.threshold, torch.threshold, torch.threshold_),
        (aten.threshold, aten.threshold_),
    ),
)

BY_KIND = {rectifier.kind: rectifier for rectifier in TABLE}
BY_FUNCTION = {function: rectifier for rectifier in TABLE + SOMETIMES for function in rectifier.functions}
BY_OPERATOR = {operator: rectifier for rectifier in TABLE + SOMETIMES for operator in rectifier.operators}


def describe(
    rectifier: Rectifier, dtype: torch.dtype, args: tuple, kwargs: dict
) -> tuple[str, float, float | None] | None:
    """Kind and bends of one call, from the arguments that follow its input; None if it is no rectifier.

    Args:
        rectifier: the row of the table that the call belongs to.
        dtype: of the input; a clamp of integers is one of indices or counts.
        args: positional arguments of the call after the input tensor.
        kwargs: keyword arguments of the call.

    Returns:
        ``(kind, lower, upper)``; upper is None for a rectifier without an upper bend. A hardtanh from 0 to 6 is
        called relu6: that is what an exported ReLU6 has become. A clamp is a rectifier if it starts at 0; one that
        starts elsewhere (logits kept in range, a divisor kept from 0) is not meant as one.
    """
    if rectifier in SOMETIMES:
        names = ("threshold", "value") if rectifier.kind == "threshold" else ("min", "max")
        first, second = (args[i] if len(args) > i else kwargs.get(name) for i, name in enumerate(names))
        if not dtype.is_floating_point or not _is_zero(first):
            return None
        if rectifier.kind == "threshold":
            return ("relu", 0.0, None) if _is_zero(second) else None
        if second is None:
            return "relu", 0.0, None
        if not isinstance(second, int | float) or not 0 < second < math.inf:
            return None
        return "relu6" if second == 6 else "hardtanh", 0.0, float(second)
    if rectifier.kind == "relu6":
        return "relu6", 0.0, 6.0
    if rectifier.kind == "hardtanh":
        lower = float(args[0] if len(args) > 0 else kwargs.get("min_val", -1.0))
        upper = float(args[1] if len(args) > 1 else kwargs.get("max_val", 1.0))
        return "relu6" if (lower, upper) == (0.0, 6.0) else "hardtanh", lower, upper
    return rectifier.kind, 0.0, None


def _is_zero(value: object) -> bool:
    return isinstance(value, int | float) and value == 0
