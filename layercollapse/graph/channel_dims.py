"""Where the channels of a tensor lie behind an operation that moves, joins or drops dimensions.

One rule for a call seen from Python and for one in a graph: their names and the order of their arguments agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from layercollapse.graph.operations import BY_NAME, REDUCES, Does


class Move(NamedTuple):
    """A call that moves, joins or drops dimensions of a tensor.

    Attributes:
        call: a function or method of torch whose row is one of `MOVES`, or the aten operation.
        args: its arguments behind the tensor.
        kwargs: its keyword arguments.
        before: shape of the tensor.
        after: shape of the result; of one of its parts where a tensor is split.
    """

    call: Callable
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    before: Sequence[int]
    after: Sequence[int]

    def place(self, dim: int) -> int | None:
        """The dimension of the result, 0 or more, in which one of the tensor's lies; None if in no single one."""
        does, place = BY_NAME[name_of(self.call)].does, dim % len(self.before)
        if does in (Does.EXPAND, Does.REPEAT):
            place += len(self.after) - len(self.before)
            return place if place >= 0 and self.after[place] == self.before[dim] else None
        if does in REDUCES:  # the dimensions that go are its first argument behind the tensor
            gone = self.args[0] if self.args else self.kwargs.get("dim", self.kwargs.get("axis"))
            gone = [gone] if type(gone) is int else gone
            if not isinstance(gone, list | tuple) or not gone:
                return None
            dropped = {d % len(self.before) for d in gone}
            if place in dropped:
                return None
            return place if len(self.after) == len(self.before) else place - sum(d < place for d in dropped)
        # A tensor whose elements differ along the dimension alone: the strides of its views say where it lies.
        strides = [0] * len(self.before)
        strides[place] = 1
        probe = torch.empty_strided(tuple(self.before), strides, device="meta")
        try:
            by_shape = does in (Does.RESHAPE, Does.FLATTEN)
            result = probe.reshape(tuple(self.after)) if by_shape else self.call(probe, *self.args, **self.kwargs)
        except Exception:
            return None
        part = result[0] if isinstance(result, list | tuple) and result else result
        if not isinstance(part, Tensor):
            return None
        # A dimension of size one may have any stride.
        single = self.before[place] == 1
        lies = [d for d, stride in enumerate(part.stride()) if stride and (part.shape[d] > 1 or single)]
        return lies[0] if len(lies) == 1 else None

    def channel_dim(self, dim: int) -> int | None:
        """As `place`, as a channel dimension is written: -1 for the last, else 1 or more; the batch is no channel.

        What leaves the shape as it is (a maximum with a tensor) leaves the channels where they are.
        """
        place = self.place(dim)
        if place is None:
            return dim if tuple(self.before) == tuple(self.after) else None
        return None if place == 0 else -1 if place == len(self.after) - 1 else place


def name_of(call: Any) -> str:
    """The name of a function, a method or an aten operation, without its overload."""
    return getattr(getattr(call, "overloadpacket", call), "__name__", "")
