"""Which implementation runs an op: the one place where backends are registered, chosen and forced.

Those of this package are in `ops.builtin`. A new backend is one `Backend` and one call of `register`, or an entry point
of the group ``layercollapse.backends``, whose object is a `Backend` or a function that returns one; it is loaded at the
first call of an op, and one that cannot be loaded is in ``backends()`` with the reason. Order matters: of those that
can run on the given tensors, the one registered last is taken; on a GPU, the one that was faster there
(`layercollapse.kernels.race`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from threading import RLock
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from layercollapse.errors import LayerCollapseError
from layercollapse.kernels.race import faster
from layercollapse.ops import reference

ENTRY_POINTS = "layercollapse.backends"


class BackendStatus(NamedTuple):
    """Whether a backend can run here, and how it runs or why it cannot."""

    available: bool
    detail: str


SignHistogramsAgain: TypeAlias = Callable[
    [Sequence[Tensor], Sequence[int], Sequence[float | None], Sequence[Tensor]],
    Callable[[Sequence[Tensor], Sequence[Tensor]], None],
]
TopkAgain: TypeAlias = Callable[[Sequence[int]], Tensor]
SignHistograms: TypeAlias = Callable[[Sequence[Tensor], Sequence[int], Sequence[float | None], Sequence[Tensor]], None]


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One implementation of the ops, with the signatures of `layercollapse.ops.reference`.

    Arguments arrive checked (shapes, types, one device, no overlap), and never empty but for single tensors of a list.
    Ops that default to None may be left out: the reference runs them, and ``ops.last_backend()`` says so.

    Attributes:
        name: what ``use_backend`` calls it.
        status: whether it can run at all; may be slow the first time.
        devices: torch device types that it runs on; empty: all.
        dtypes: float types that it reads; empty: all.
        sign_histogram_: see ``reference.sign_histogram_``.
        sign_histograms_: the same for lists of its arguments, with no empty tensor; without, sign_histogram_ is called
            for each.
        masked_topk_: see ``reference.masked_topk_``.
        apply_mask_: see ``reference.apply_mask_``.
        topk_count_: see ``reference.topk_count_``.
        masked_topk_again_: returns masked_topk_ of the same memory, as a function of k that holds no tensor of the
            caller; not called while a CUDA graph is captured.
        apply_mask_again_: the same of apply_mask_.
        sign_histograms_again_: returns sign_histograms_ for tensors of these layouts, whose addresses are as these are
            modulo 16, as a function of xs and outs.
        sign_hashes_: see ``reference.sign_hashes_``.
    """

    name: str
    status: Callable[[], BackendStatus]
    devices: frozenset[str] = frozenset()
    dtypes: frozenset[torch.dtype] = frozenset()
    sign_histogram_: Callable[[Tensor, int, float | None, Tensor], None]
    sign_histograms_: SignHistograms | None = None
    masked_topk_: Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[int], str], Tensor]
    apply_mask_: Callable[[Sequence[Tensor], Sequence[Tensor]], None] | None = None
    sign_hashes_: Callable[[Tensor, int, Tensor], None] | None = None
    topk_count_: Callable[[Sequence[Tensor], Sequence[Tensor], int, int, Tensor], None] | None = None
    masked_topk_again_: Callable[[Sequence[Tensor], Sequence[Tensor], str], TopkAgain] | None = None
    apply_mask_again_: Callable[[Sequence[Tensor], Sequence[Tensor]], Callable[[], None]] | None = None
    sign_histograms_again_: SignHistogramsAgain | None = None

    def __post_init__(self) -> None:
        if self.sign_histograms_ is None:
            object.__setattr__(self, "sign_histograms_", partial(_one_by_one, self.sign_histogram_))

    def state(self) -> BackendStatus:
        """Return the status; an error in finding it out is a reason why the backend is not available."""
        try:
            return BackendStatus(*self.status())
        except Exception as error:  # a third party's
            return BackendStatus(False, f"its status failed: {_said(error)}")

    def obstacle(self, tensors: Sequence[Tensor]) -> str | None:
        """Return why this backend cannot run on these tensors, or None if it can."""
        status = self.state()
        if not status.available:
            return status.detail
        # All tensors are on one device: an op's checks come first.
        if self.devices and tensors[0].device.type not in self.devices:
            return f"it runs on {' and '.join(sorted(self.devices))} tensors, got one on {tensors[0].device}"
        unread = {tensor.dtype for tensor in tensors} - self.dtypes
        if self.dtypes and unread:
            names = sorted(str(dtype).removeprefix("torch.") for dtype in self.dtypes)
            return f"it reads {', '.join(names)}, got {str(unread.pop()).removeprefix('torch.')}"
        return None


def _one_by_one(count: Callable[[Tensor, int, float | None, Tensor], None], *lists: Sequence[Any]) -> None:
    for arguments in zip(*lists, strict=True):
        count(*arguments)


_registry: Mapping[str, Backend] = {}
_own: frozenset[str] = frozenset()  # names that nobody else may take
_forced: ContextVar[str | None] = ContextVar("layercollapse_forced_backend", default=None)
_last: ContextVar[str | None] = ContextVar("layercollapse_last_backend", default=None)
_reading = RLock()
_unread: list[metadata.EntryPoint] | None = None  # None before the first look


def register(backend: Backend) -> None:
    """Make a backend known; it is preferred to those registered before it.

    Args:
        backend: of a name that is not one of this package's own. One registered under it before is replaced.
    """
    if not isinstance(backend, Backend):
        raise LayerCollapseError(f"backend: expected a Backend, got {backend!r}")
    if not isinstance(backend.name, str) or backend.name in _own:
        raise LayerCollapseError(f"backend: expected a name other than {_names(_own)}, got {backend.name!r}")
    global _registry  # noqa: PLW0603 - replaced as a whole: other threads read what it was or what it is
    with _reading:
        others = {name: other for name, other in _registry.items() if name != backend.name}
        _registry = {**others, backend.name: backend}


def reserve() -> None:
    """Keep the names registered so far for this package."""
    global _own  # noqa: PLW0603 - once, at import
    _own = frozenset({"auto", *_registry})


def backends() -> dict[str, BackendStatus]:
    """Tell which backends there are, and for each how it runs or why it cannot.

    >>> backends()["reference"]
    BackendStatus(available=True, detail='plain torch, any device')
    """
    return {name: backend.state() for name, backend in _known().items()}


def choose(tensors: Sequence[Tensor], op: str, channel_dim: int = 1) -> Backend:
    """Return the backend of an op for these tensors: the forced one, or the preferred one of those that can run."""
    known = _known()
    name = _forced.get()
    if name is not None:
        backend = known[name]
        obstacle = backend.obstacle(tensors)
        if obstacle is not None:
            raise LayerCollapseError(f"use_backend: {name!r} was forced and cannot run: {obstacle}")
        return backend if _has(backend, op) else known["reference"]
    able = (backend for backend in reversed([*known.values()]) if _has(backend, op) and not backend.obstacle(tensors))
    if not tensors[0].is_cuda:
        return next(able)
    return faster([*able][:-1] or [known["reference"]], op, tensors, channel_dim)


def run(op: str, tensors: Sequence[Tensor], *arguments: object, channel_dim: int = 1) -> Any:
    """Run an op on the backend chosen for these tensors, and remember which that was."""
    backend = choose(tensors, op, channel_dim)
    result = getattr(backend, op)(*arguments)
    _last.set(backend.name)
    return result


Choice: TypeAlias = tuple[str | None, Mapping[str, Backend]]


def choice() -> Choice:
    """Return what decides, besides tensors and CUDA graphs, which backend runs: the one forced, and all there are."""
    return _forced.get(), _registry


def again(op: str) -> Callable[..., Any] | None:
    """Return what makes the backend that ran the last op run it on the same memory again, if it has that."""
    name = _last.get()
    return None if name is None else getattr(_registry[name], f"{op}again_")


def ran(name: str) -> None:
    """Remember that a backend ran the last op."""
    _last.set(name)


def last_backend() -> str | None:
    """Return which backend ran the last op of this thread (or asynchronous task); None before the first.

    A replay of a CUDA graph runs no op: it repeats what ran when the graph was captured.

    >>> from layercollapse import ops
    >>> with use_backend("reference"):
    ...     _ = ops.sign_histogram(torch.ones(2, 3))
    >>> last_backend()
    'reference'
    """
    return _last.get()


def _known() -> Mapping[str, Backend]:
    """Return the registry, after the entry points of other packages are in it."""
    global _unread  # noqa: PLW0603 - once per process
    if _unread != []:
        with _reading:  # not at import: these packages import this one
            if _unread is None:
                _unread = [*metadata.entry_points(group=ENTRY_POINTS)]
            while _unread:  # also of a package that runs an op while it is loaded
                _register_entry(_unread.pop(0))
    return _registry


def _register_entry(entry: metadata.EntryPoint) -> None:
    try:
        loaded = entry.load()
        backend = loaded if isinstance(loaded, Backend) else loaded()
        if isinstance(backend, Backend) and backend.name in _registry:
            raise LayerCollapseError(f"backend: expected a new name, got {backend.name!r}")
        register(backend)
    except Exception as error:  # a third party's: ops go on without it, and backends() says why
        detail = f"the entry point {entry.name} = {entry.value} failed: {_said(error)}"
        name = entry.name if entry.name not in _registry and entry.name not in _own else entry.value
        register(
            Backend(
                name=name,
                status=lambda: BackendStatus(False, detail),
                sign_histogram_=reference.sign_histogram_,
                masked_topk_=reference.masked_topk_,
            )
        )


def _has(backend: Backend, op: str) -> bool:
    return getattr(backend, op) is not None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _names(names: Sequence[str] | frozenset[str]) -> str:
    return ", ".join(map(repr, names))


class use_backend(AbstractContextManager[None]):  # noqa: N801 - reads as the function that it is to its users
    """Force one backend, by a plain call or for a ``with`` block, in this thread or asynchronous task.

    Other threads that run ops choose for themselves: those of a data loader, of ``DataParallel``, and those in which
    autograd runs the backward pass of tensors on a GPU. ``contextvars.copy_context().run(...)`` takes a choice along.

    >>> with use_backend("reference"):
    ...     pass
    >>> use_backend("auto")  # choose by the device of the tensors again
    use_backend('auto')

    Args:
        name: a key of ``backends()``, or ``"auto"``.

    Raises:
        LayerCollapseError: there is no such backend, or it cannot run here. It is never replaced by another where it
            has the op: an op on tensors that a forced backend cannot read raises too.
    """

    def __init__(self, name: str) -> None:
        if name != "auto":
            known = _known()
            if not isinstance(name, str) or name not in known:
                raise LayerCollapseError(f"use_backend: expected one of {_names(['auto', *known])}, got {name!r}")
            status = known[name].state()
            if not status.available:
                raise LayerCollapseError(f"use_backend: {name!r} cannot run here: {status.detail}")
        self._name = name
        self._before = [_forced.get()]  # what each exit brings back
        self._entered = False
        _forced.set(None if name == "auto" else name)

    def __enter__(self) -> None:
        if self._entered:  # once more
            self._before.append(_forced.get())
        self._entered = True
        _forced.set(None if self._name == "auto" else self._name)

    def __exit__(self, *_: object) -> None:
        _forced.set(self._before.pop())

    def __repr__(self) -> str:
        return f"use_backend({self._name!r})"
