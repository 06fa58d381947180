"""Where the channels of a tensor lie behind an operation that moves, joins or drops dimensions.

One rule for a call seen from Python and for one in a graph: their names and the order of their arguments agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# They take the dimensions that go as their first argument behind the tensor.
_REDUCTIONS = {"mean", "sum", "amax", "amin", "max", "min", "median", "logsumexp", "prod", "std", "var"}
_RESHAPES = {"view", "reshape", "_unsafe_view", "view_as", "flatten", "unflatten"}
_VIEWS = {
    *("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "mT", "numpy_T", "__get__"),
    *("squeeze", "unsqueeze", "expand", "expand_as", "select", "slice", "narrow", "__getitem__"),
    *("chunk", "split", "split_with_sizes", "tensor_split", "unbind"),
}
MOVING = _REDUCTIONS | _RESHAPES | _VIEWS


def moved(
    call: Callable,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    shapes: tuple[Sequence[int], Sequence[int]],
    dim: int,
) -> int | None:
    """The dimension in which the channels of a call's tensor lie in its result, 0 or more; None if in no single one.

    Args:
        call: a function or method of torch whose name is in `MOVING`, or the aten operation.
        args: its arguments behind the tensor.
        kwargs: its keyword arguments.
        shapes: of the tensor and of the result; of one of its parts where a tensor is split.
        dim: the channels' dimension in the tensor.
    """
    before, after = shapes
    name, place = name_of(call), dim % len(before)
    if name in _REDUCTIONS:
        gone = args[0] if args else kwargs.get("dim", kwargs.get("axis"))
        gone = [gone] if type(gone) is int else gone
        if not isinstance(gone, list | tuple) or not gone:
            return None
        dropped = {d % len(before) for d in gone}
        if place in dropped:
            return None
        return place if len(after) == len(before) else place - sum(d < place for d in dropped)
    # A tensor whose elements differ along the channels alone: what the strides of its views say is where these lie.
    strides = [0] * len(before)
    strides[place] = 1
    probe = torch.empty_strided(tuple(before), strides, device="meta")
    try:
        result = probe.reshape(tuple(after)) if name in _RESHAPES else call(probe, *args, **kwargs)
    except Exception:
        return None
    part = result[0] if isinstance(result, list | tuple) and result else result
    if not isinstance(part, Tensor):
        return None
    # A dimension of size one may have any stride.
    lies = [d for d, stride in enumerate(part.stride()) if stride and (part.shape[d] > 1 or before[place] == 1)]
    return lies[0] if len(lies) == 1 else None


def behind(
    call: Callable,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    shapes: tuple[Sequence[int], Sequence[int]],
    dim: int,
) -> int | None:
    """The same as a channel dimension is written, or None: -1 for the last, else 1 or more; the batch is no channel.

    What leaves the shape as it is (a maximum with a tensor) leaves the channels where they are.
    """
    place = moved(call, args, kwargs, shapes, dim)
    if place is None:
        return dim if tuple(shapes[0]) == tuple(shapes[1]) else None
    return None if place == 0 else -1 if place == len(shapes[1]) - 1 else place


def name_of(call: Any) -> str:
    """The name of a function, a method or an aten operation, without its overload."""
    return getattr(getattr(call, "overloadpacket", call), "__name__", "")
