"""Watch one forward pass of a model: the rectifier calls it makes, their names, and the signs of their inputs.

Names and channel dimensions follow the rules of `graph.capture`, so that counts fit a capture of the model.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from layercollapse import ops
from layercollapse._util.sharded import whole
from layercollapse.errors import LayerCollapseError
from layercollapse.graph import rectifiers
from layercollapse.graph.channel_dims import Move, name_of
from layercollapse.graph.operations import BY_NAME, MOVES, NO_ROW, RESIZES, Operation
from layercollapse.graph.patterns import reaches, same_sign
from layercollapse.graph.terms import INPLACE, NAMES, Found, Term, keeps
from layercollapse.graph.written import TensorMemo, TensorTerms

# Path of the model itself, and names that wrappers put into module paths; they are left out of site names.
ROOT = ""
_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}


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


class Signs(NamedTuple):
    """The signs of a rectifier's input: counts relative to its bends, int64 (C, 4 or 5), and a hash of each row."""

    counts: Tensor
    hashes: Tensor | None


@dataclass(eq=False)
class _Sighting:
    """One rectifier call of a forward pass: where it is made, and the signs of its input.

    `dim` is the channel dimension of its input, None where that is the one by default, or one is not known.
    """

    path: str
    call: RectifierCall
    signs: Signs
    dim: int | None = None


class ForwardWatch(TorchFunctionMode):
    """One forward pass of the model: counts the input of every rectifier call.

    Args:
        explicit: bool (N, T), the mask that the user gave; a site that it does not fit is an error.
        found: bool (N, T), from the model's attention mask; used where it fits.
        patterns: whether to hash the signs of every row, too.
        buffers: for the counts; another watch may use them when this one's have been taken.
    """

    def __init__(
        self, explicit: Tensor | None, found: Tensor | None, patterns: bool = False, buffers: CountBuffers | None = None
    ) -> None:
        super().__init__()
        self._buffers = CountBuffers() if buffers is None else buffers
        self._buffers.restart()
        self._patterns = patterns
        self._path: list[str] = []  # site paths of the modules whose forward is running
        self.entered: list[str] = []  # those of all whose forward has begun
        self._explicit, self._found = explicit, found
        self.sightings: list[_Sighting] = []
        self._terms = TensorTerms()
        self._dims: TensorMemo[int] = TensorMemo()  # channel dimensions
        self._handling = handled()  # the model may run inside somebody's `except`

    @property
    def seen(self) -> dict[str, tuple[RectifierCall, Signs]]:
        """The sites by name, in order, with their signs."""
        numbers: Counter[str] = Counter()
        named = {}
        for site in self.sightings:
            named[numbered(site.path, numbers[site.path])] = site.call, site.signs
            numbers[site.path] += 1
        return named

    def raising(self) -> bool:
        """Whether the forward pass is being left by an exception."""
        return handled() is not self._handling

    def enter(self, path: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Note that a module's forward begins."""
        self._path.append(path)
        self.entered.append(path)

    def leave(self, path: str) -> bool:
        """Note that a module's forward ends, and say whether the model's ends with it."""
        if self._path and self._path[-1] == path:
            self._path.pop()
        return path == ROOT and not self._path

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        known = known_function(func)
        changed = _changed(known.writes, args, kwargs) if known.writes or kwargs else None
        term = self._terms.called(known.reads, args, kwargs) if known.reads else None
        site = None if known.rectifier is None else self._count(known.rectifier, args, kwargs)
        if isinstance(term, Term) and (changed is None or keeps(term, changed.dtype)):
            self._follow(term, site)
        result = func(*args, **kwargs)
        if changed is None and known.may_write and args and result is args[0]:
            changed = result
        if changed is not None:
            self._terms.wrote(changed)
        if term is not None:
            after = changed if result is None else result
            if isinstance(after, Tensor) and (changed is not None or not args or after is not args[0]):
                self._terms.made(after, term)
        if isinstance(result, Tensor):
            self._tag(known, args, kwargs, result)
        elif isinstance(result, list | tuple):
            for part in result:
                if isinstance(part, Tensor):
                    self._tag(known, args, kwargs, part)
        return result

    def _tag(self, known: _Function, args: tuple, kwargs: dict[str, Any], result: Tensor) -> None:
        if result.ndim < 2:
            return
        dim, does = known.row.dim, known.row.does
        if dim is None and does in MOVES:
            first = args[0] if args else kwargs.get("input")
            if isinstance(first, Tensor) and (before := self._dims.get(first)) is not None:
                rest = {name: value for name, value in kwargs.items() if name != "input"}
                dim = _moved(Move(known.called, args[1:], rest, first.shape, result.shape), before)
        elif dim is None:
            for source in _tensors((*args, *kwargs.values()) if kwargs else args):
                followed = self._dims.get(source)
                if followed is not None and (
                    source.shape == result.shape or (does in RESIZES and source.ndim == result.ndim)
                ):
                    dim = followed
                    break
        if dim is not None:
            self._dims[result] = dim

    def _count(self, rectifier: rectifiers.Rectifier, args: tuple, kwargs: dict[str, Any]) -> _Sighting | None:
        x, rest = (args[0], args[1:]) if args else (kwargs.get("input"), ())
        if not isinstance(x, Tensor):
            return None  # the call itself will raise
        call = rectifiers.describe(rectifier, x.dtype, rest, kwargs)
        if call is None:
            return None  # a clamp that is none
        if rectifier.kind == "linear":
            dim = rest[2] if len(rest) > 2 else kwargs.get("channel_dim")
            return self._saw(call, lambda: self._signs(x.detach().new_ones(()).expand_as(x), 0.0, None, dim))
        # Several slopes lie along dimension 1.
        dim = 1 if rectifier.kind == "prelu" and len(rest) and rest[0].numel() > 1 else self._dims.get(x)
        site = self._saw(call, lambda: self._signs(x, *call[1:], dim))
        site.dim = dim
        return site

    def _follow(self, term: Term, site: _Sighting | None) -> None:
        """See whether a call completes a rectifier that is written out; `site` is the one that it calls."""
        written = self._terms.rectifier(term)
        if written is None:
            return
        variable = written.variable
        if site is None and written.match.scale != 1:
            # All but a factor: the tensor may be gone when that comes.
            if variable.signs is None and (x := self._terms.tensor(variable)) is not None:
                with contextlib.suppress(LayerCollapseError):  # it may be none
                    variable.signs = self._signs(x, 0.0, None)
            return
        if site is None:
            upper = written.match.upper
            signs = self._written(written, upper)
            if signs is None:
                return
            site = self._saw((written.match.kind, 0.0, upper), signs)
            gone = [part.site for part in written.inner[1:] if part.site is not None]
            self.sightings = [other for other in self.sightings if not any(other is part for part in gone)]
        elif variable is not term.operands[0]:
            return
        term.match, term.variable, term.site = written.match, variable, site
        variable.signs = site.signs

    def _written(self, written: Found, upper: float | None) -> Callable[[], Signs] | None:
        """What gives the signs of the variable of a rectifier that is written out.

        Where the tensor is gone, or written over, one that has its signs may be there, half of it, say, and one that
        is above the upper bend where it is.
        """
        variable, parts = written.variable, [part for part in written.inner[1:] if self._terms.tensor(part) is not None]
        x = self._terms.tensor(variable)
        if x is not None:
            return lambda: self._signs(x, 0.0, upper)
        like = next((p for p in parts if same_sign(written.body(p))), None) if variable.signs is None else None
        if variable.signs is None and like is None:
            return None
        signs: Signs = variable.signs if like is None else self._signs(self._terms.tensor(like), 0.0, None)  # type: ignore[arg-type]
        signs = signs._replace(counts=signs.counts[:, :4])
        if upper is None:
            return lambda: signs
        top = next((p for p in parts if reaches(written.body(p), upper)), None)
        if top is None:
            return None

        def with_top() -> Signs:
            above = self._signs(self._terms.tensor(top), 0.0, upper).counts[:, 4:]  # type: ignore[arg-type]
            return signs._replace(counts=torch.cat([signs.counts, above], 1))

        return with_top

    def _saw(self, call: tuple[str, float, float | None], look: Callable[[], Signs]) -> _Sighting:
        path = self._path[-1] or "forward"
        try:
            signs = look()
        except LayerCollapseError as error:
            name = numbered(path, sum(site.path == path for site in self.sightings))
            raise LayerCollapseError(f"site {name!r}: {error}") from error
        self.sightings.append(_Sighting(path, RectifierCall(call[0], len(signs.counts), *call[1:]), signs))
        return self.sightings[-1]

    def _signs(self, x: Tensor, lower: float, upper: float | None, dim: int | None = None) -> Signs:
        """The signs relative to the bends; `dim` where channels must lie."""
        dim = self._dims.get(x) if dim is None else dim
        if dim is None:
            dim = default_dim(x)
        if torch._C._functorch.is_functorch_wrapped_tensor(x):
            raise LayerCollapseError(
                "expected a call outside the transforms of torch.func, got one inside torch.vmap or another of these, "
                "whose values cannot be counted"
            )
        if x.ndim < 2:
            x, dim = x.detach().reshape(-1, 1), 1
        if lower == 0 and self._explicit is self._found is None and not self._patterns:
            return Signs(self._buffers.count(x, dim, upper), None)
        x = whole(x.detach())
        with torch.no_grad(), torch.inference_mode(False):
            x, dim = self._data(x, dim)
            hashes = ops.sign_hashes(_from(x, lower), channel_dim=dim) if self._patterns else None
            return Signs(_histogram(x, dim, lower, upper), hashes)

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


class CountBuffers:
    """The counts of one forward pass after the other: to make them costs the host as much as to count.

    They are cleared together, which is one launch on a GPU.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._next = 0

    def restart(self) -> None:
        """Begin a forward pass."""
        self._next = 0
        if self._buffers:
            torch._foreach_zero_(self._buffers)

    def count(self, x: Tensor, dim: int, upper: float | None) -> Tensor:
        """As `ops.sign_histogram`, into the next buffer; of a DTensor, what its ranks gather."""
        x = whole(x)
        at, self._next = self._next, self._next + 1
        known = self._buffers[at] if at < len(self._buffers) else None
        if known is not None and known.shape == (x.shape[dim], 4 if upper is None else 5) and known.device == x.device:
            return ops.sign_histogram(x, channel_dim=dim, upper=upper, out=known)
        with torch.inference_mode(False):
            counts = ops.sign_histogram(x, channel_dim=dim, upper=upper)
        self._buffers[at:] = [counts]
        return counts


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
        hint = "; pass what its module() gives" if isinstance(model, torch.export.ExportedProgram) else ""
        raise LayerCollapseError(f"model: expected a torch.nn.Module, got {type(model).__name__}{hint}")
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]  # type: ignore[assignment]
        else:
            return model


def group_of(model: nn.Module) -> Any:
    """The process group of the DistributedDataParallel that a module is in, or None."""
    while isinstance(model, nn.Module):
        if isinstance(model, nn.parallel.DistributedDataParallel):
            return model.process_group
        model = model._modules.get("_orig_mod")  # type: ignore[assignment]
    return None


def default_dim(x: Tensor) -> int:
    """The channel dimension of a tensor of which nothing is known."""
    return -1 if x.ndim == 3 else 1


def handled() -> BaseException | None:
    """The exception that is being handled."""
    return sys.exc_info()[1]


def numbered(path: str, place: int) -> str:
    """The name of the site that the first call in a module is (place 0), or the second, ..."""
    return path if place == 0 else f"{path}#{place + 1}"


def site_path(path: str) -> str:
    """A module path without the names that wrappers put into it."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)


class _Function(NamedTuple):
    """What a function is to a watch: `called` is it, without its overload.

    Attributes:
        reads: its name, where `terms.NAMES` has it, else "".
        writes: whether its name says that it writes into its first argument.
        may_write: whether it does if its result is its first argument.
    """

    called: Callable
    reads: str
    writes: bool
    may_write: bool
    rectifier: rectifiers.Rectifier | None
    row: Operation


@lru_cache(maxsize=4096)
def known_function(func: Callable) -> _Function:
    """What a function or an operation is, remembered."""
    called = getattr(func, "overloadpacket", func)
    name = name_of(called)
    plain = name.strip("_")
    rectifier = rectifiers.BY_FUNCTION.get(called) or rectifiers.BY_OPERATOR.get(called)
    return _Function(
        called,
        plain if plain in NAMES else "",
        (name.endswith("_") and not name.endswith("__")) or name in ("__setitem__", "__set__"),
        rectifier is not None or plain in INPLACE,
        rectifier,
        BY_NAME.get(name, NO_ROW),
    )


def _changed(writes: bool, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """The tensor that a call writes into, as far as its name and its keywords say."""
    into = kwargs.get("out")
    if writes or kwargs.get("inplace"):
        into = args[0] if args else kwargs.get("input")
    return into if isinstance(into, Tensor) else None


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments, in order."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())


def _moved(move: Move, dim: int) -> int | None:
    """`Move.channel_dim`, which takes 30 us, remembered for arguments that are integers and tuples of them."""
    if move.kwargs or not all(map(_integers, move.args)):
        return move.channel_dim(dim)
    return _moved_by(move.call, tuple(move.args), move.before, move.after, dim)


def _integers(value: Any) -> bool:
    return type(value) is int or (type(value) is tuple and all(type(entry) is int for entry in value))


@lru_cache(maxsize=4096)
def _moved_by(call: Callable, args: tuple, before: torch.Size, after: torch.Size, dim: int) -> int | None:
    return Move(call, args, {}, before, after).channel_dim(dim)


def _histogram(x: Tensor, dim: int, lower: float, upper: float | None) -> Tensor:
    """Counts of x relative to two bends: int64 (C, 4), or (C, 5) with an upper bend."""
    if lower == 0:
        return ops.sign_histogram(x, channel_dim=dim, upper=upper)
    counts = ops.sign_histogram(_from(x, lower), channel_dim=dim)
    if upper is None:
        return counts
    above = ops.sign_histogram(_from(x, upper), channel_dim=dim)
    return torch.cat([counts, above[:, 1:3].sum(1, keepdim=True)], dim=1)


def _from(x: Tensor, bend: float) -> Tensor:
    """How far x is from a bend, its sign exact, as that of a difference is in floating point."""
    return x if bend == 0 else (x if x.dtype == torch.float64 else x.float()) - bend
