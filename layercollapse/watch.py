"""Watch one forward pass of a model: the rectifier calls it makes, their names, and the signs of their inputs.

Names and channel dimensions follow the rules of `layercollapse.graph`, so that counts fit a capture of the model.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from layercollapse import ops, rectifiers
from layercollapse.errors import LayerCollapseError
from layercollapse.moves import MOVING, Move, name_of
from layercollapse.operations import BY_NAME, RESIZES

# Path of the model itself, and names that wrappers put into module paths; they are left out of site names.
ROOT = ""
_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}

# Function name -> channel dimension of its result: the rules of the graph capture, by the name of the Python call.
_CHANNEL_DIMS: dict[str, int] = {name: row.dim for name, row in BY_NAME.items() if row.dim is not None}
# Functions that keep the channel dimension though they change the shape.
_RESIZING = {name for name, row in BY_NAME.items() if row.does in RESIZES}


@dataclass(frozen=True)
class RectifierCall:
    """What must be the same every time that a site is seen."""

    kind: str
    channels: int
    lower: float
    upper: float | None

    def __str__(self) -> str:
        bends = "" if (self.lower, self.upper) == (0, None) else f" on [{self.lower}, {self.upper}]"
        return f"{self.kind}{bends} with {self.channels} channels"


class ForwardWatch(TorchFunctionMode):
    """One forward pass of the model: counts the input of every rectifier call.

    Args:
        explicit: bool (N, T), the mask that the user gave; a site that it does not fit is an error.
        found: bool (N, T), from the model's attention mask; used where it fits.
    """

    def __init__(self, explicit: Tensor | None, found: Tensor | None) -> None:
        super().__init__()
        self.path: list[str] = []  # site paths of the modules whose forward is running
        self.seen: dict[str, tuple[RectifierCall, Tensor]] = {}
        self._explicit, self._found = explicit, found
        self._calls: Counter[str] = Counter()
        self._dims = WeakIdKeyDictionary()  # tensor -> its channel dimension
        self._handling = sys.exc_info()[1]  # the model may run inside somebody's `except`

    def raising(self) -> bool:
        """Whether the forward pass is being left by an exception."""
        return sys.exc_info()[1] is not self._handling

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        called = getattr(func, "overloadpacket", func)
        rectifier = rectifiers.BY_FUNCTION.get(called) or rectifiers.BY_OPERATOR.get(called)
        if rectifier is not None:
            self._count(rectifier, args, kwargs)
        result = func(*args, **kwargs)
        for part in result if isinstance(result, list | tuple) else [result]:
            if isinstance(part, Tensor) and part.ndim > 1:
                self._tag(called, args, kwargs, part)
        return result

    def _tag(self, called: Any, args: tuple, kwargs: dict[str, Any], result: Tensor) -> None:
        dim = _CHANNEL_DIMS.get(name_of(called))
        first = args[0] if args else kwargs.get("input")
        if dim is None and name_of(called) in MOVING and isinstance(first, Tensor):
            if first in self._dims:
                rest = {name: value for name, value in kwargs.items() if name != "input"}
                dim = Move(called, args[1:], rest, first.shape, result.shape).channel_dim(self._dims[first])
        elif dim is None:
            resizing = name_of(called) in _RESIZING
            sources = (
                x
                for x in tree_leaves((args, kwargs))
                if isinstance(x, Tensor) and (x.shape == result.shape or (resizing and x.ndim == result.ndim))
            )
            dim = next((self._dims[source] for source in sources if source in self._dims), None)
        if dim is not None:
            self._dims[result] = dim

    def _count(self, rectifier: rectifiers.Rectifier, args: tuple, kwargs: dict[str, Any]) -> None:
        x, rest = (args[0], args[1:]) if args else (kwargs.get("input"), ())
        if not isinstance(x, Tensor):
            return  # the call itself will raise
        found = rectifiers.describe(rectifier, x.dtype, rest, kwargs)
        if found is None:
            return  # a clamp that is none
        path = self.path[-1] or "forward"
        self._calls[path] += 1
        name = path if self._calls[path] == 1 else f"{path}#{self._calls[path]}"
        dim = self._dims.get(x, -1 if x.ndim == 3 else 1)
        if rectifier.kind == "prelu" and len(rest) and rest[0].numel() > 1:
            dim = 1  # where its slopes lie
        x = x.detach()
        if x.ndim < 2:
            x, dim = x.reshape(-1, 1), 1
        call = RectifierCall(found[0], x.shape[dim], *found[1:])
        try:
            with torch.no_grad(), torch.inference_mode(False):
                self.seen[name] = call, _histogram(*self._data(x, dim), call)
        except LayerCollapseError as error:
            raise LayerCollapseError(f"site {name!r}: {error}") from error

    def _data(self, x: Tensor, dim: int) -> tuple[Tensor, int]:
        """A site's tensor and channel dimension; with a mask that fits, only what is data, (samples, C)."""
        mask = self._explicit if self._explicit is not None else self._found
        if mask is None:
            return x, dim
        rows = x.movedim(dim, -1)  # (N, *, C)
        positions = rows.shape[:-1]
        if positions == (mask.numel(),):
            mask = mask.flatten()
        if positions == mask.shape:
            return rows[mask.to(x.device)], -1
        if self._explicit is not None and positions != mask.shape[:1]:
            raise LayerCollapseError(
                f"mask: expected one for the site's positions {tuple(positions)}, got {tuple(mask.shape)}"
            )
        return x, dim


class MaskArgument:
    """Finds a 2-D `attention_mask` (1 for data, 0 for padding) among the arguments of a model's call."""

    def __init__(self, model: nn.Module) -> None:
        try:
            parameters = list(inspect.signature(model.forward).parameters)
        except (TypeError, ValueError):
            parameters = []
        self._index = parameters.index("attention_mask") if "attention_mask" in parameters else None

    def __call__(self, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
        """Bool (N, T), or None if there is no such argument."""
        mask = kwargs.get("attention_mask")
        if mask is None and self._index is not None and self._index < len(args):
            mask = args[self._index]
        return mask > 0 if isinstance(mask, Tensor) and mask.ndim == 2 else None


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's module inside DataParallel, DistributedDataParallel and `torch.compile`, in any order."""
    if not isinstance(model, nn.Module):
        raise LayerCollapseError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]  # type: ignore[assignment]
        else:
            return model


def site_path(path: str) -> str:
    """A module path without the names that wrappers put into it."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)


def _histogram(x: Tensor, dim: int, call: RectifierCall) -> Tensor:
    """Counts of x relative to the bends of a call: int64 (C, 4), or (C, 5) with an upper bend."""
    if call.lower == 0:
        return ops.sign_histogram(x, channel_dim=dim, upper=call.upper)
    wide = x if x.dtype == torch.float64 else x.float()  # the sign of a difference is exact in floating point
    counts = ops.sign_histogram(wide - call.lower, channel_dim=dim)
    if call.upper is None:
        return counts
    above = ops.sign_histogram(wide - call.upper, channel_dim=dim)
    return torch.cat([counts, above[:, 1:3].sum(1, keepdim=True)], dim=1)
