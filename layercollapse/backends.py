"""Which implementation runs an op: the one place where backends are registered, chosen and forced.

A new backend is one `Backend` and one call of `register`. Order matters: of those that can run on the given
tensors, the one registered last is taken; on a GPU, the one that was faster there (`layercollapse.kernels.race`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from layercollapse import cpu, reference
from layercollapse.errors import LayerCollapseError
from layercollapse.kernels import cuda, triton_backend
from layercollapse.kernels.bits import FLOAT_TYPES
from layercollapse.kernels.race import faster


class BackendStatus(NamedTuple):
    """Whether a backend can run here, and how it runs or why it cannot."""

    available: bool
    detail: str


@dataclass(frozen=True)
class Backend:
    """One implementation of every op, with the signatures of `layercollapse.reference`.

    Attributes:
        name: what ``use_backend`` calls it.
        devices: torch device types that it runs on; empty: all.
        dtypes: float types that it reads; empty: all.
        status: whether it can run at all; may be slow the first time, must never raise.
        sign_histogram_: see ``reference.sign_histogram_``.
        masked_topk_: see ``reference.masked_topk_``.
    """

    name: str
    devices: frozenset[str]
    dtypes: frozenset[torch.dtype]
    status: Callable[[], BackendStatus]
    sign_histogram_: Callable[[Tensor, int, float | None, Tensor], None]
    masked_topk_: Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[int], str], Tensor]

    def obstacle(self, tensors: Sequence[Tensor]) -> str | None:
        """Return why this backend cannot run on these tensors, or None if it can."""
        status = self.status()
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


_registry: dict[str, Backend] = {}
_forced: str | None = None


def register(backend: Backend) -> None:
    """Make a backend known; it is preferred to those registered before it."""
    _registry[backend.name] = backend


def backends() -> dict[str, BackendStatus]:
    """Tell which backends there are, and for each how it runs or why it cannot.

    >>> backends()["reference"]
    BackendStatus(available=True, detail='plain torch, any device')
    """
    return {name: backend.status() for name, backend in _registry.items()}


def choose(tensors: Sequence[Tensor], op: str, channel_dim: int = 1) -> Backend:
    """Return the backend of an op for these tensors: the forced one, or the preferred one of those that can run."""
    if _forced is not None:
        backend = _registry[_forced]
        obstacle = backend.obstacle(tensors)
        if obstacle is not None:
            raise LayerCollapseError(f"use_backend: {_forced!r} was forced and cannot run: {obstacle}")
        return backend
    able = (backend for backend in reversed(_registry.values()) if backend.obstacle(tensors) is None)
    if not tensors[0].is_cuda:
        return next(able)
    return faster([*able][:-1] or [_registry["reference"]], op, tensors, channel_dim)


class use_backend(AbstractContextManager[None]):  # noqa: N801 - reads as the function that it is to its users
    """Force one backend for the whole process, by a plain call or for a ``with`` block.

    >>> with use_backend("reference"):
    ...     pass
    >>> use_backend("auto")  # choose by the device of the tensors again
    use_backend('auto')

    Args:
        name: a key of ``backends()``, or ``"auto"``.

    Raises:
        LayerCollapseError: there is no such backend, or it cannot run here. It is never replaced by another:
            an op on tensors that a forced backend cannot read raises too.
    """

    def __init__(self, name: str) -> None:
        global _forced  # noqa: PLW0603 - a process-wide choice is the contract: other threads run the ops too
        if name != "auto":
            if name not in _registry:
                known = ", ".join(map(repr, ["auto", *_registry]))
                raise LayerCollapseError(f"use_backend: expected one of {known}, got {name!r}")
            status = _registry[name].status()
            if not status.available:
                raise LayerCollapseError(f"use_backend: {name!r} cannot run here: {status.detail}")
        self._name = name
        self._previous = _forced
        _forced = None if name == "auto" else name

    def __exit__(self, *_: object) -> None:
        global _forced  # noqa: PLW0603
        _forced = self._previous

    def __repr__(self) -> str:
        return f"use_backend({self._name!r})"


register(
    Backend(
        name="reference",
        devices=frozenset(),
        dtypes=frozenset(),
        status=lambda: BackendStatus(True, "plain torch, any device"),
        sign_histogram_=reference.sign_histogram_,
        masked_topk_=reference.masked_topk_,
    )
)
register(
    Backend(
        name="triton",
        devices=frozenset({"cuda", "cpu"} if triton_backend.interpreted() else {"cuda"}),
        dtypes=frozenset(FLOAT_TYPES),
        status=lambda: BackendStatus(*triton_backend.status()),
        sign_histogram_=triton_backend.sign_histogram_,
        masked_topk_=triton_backend.masked_topk_,
    )
)
register(
    Backend(
        name="cuda",
        devices=frozenset({"cuda", "cpu"} if cuda.emulated() else {"cuda"}),
        dtypes=frozenset(FLOAT_TYPES),
        status=lambda: BackendStatus(*cuda.status()),
        sign_histogram_=cuda.sign_histogram_,
        masked_topk_=cuda.masked_topk_,
    )
)
register(
    Backend(
        name="cpu",
        devices=frozenset({"cpu"}),
        dtypes=frozenset(cpu.DTYPE_CODES),
        status=lambda: BackendStatus(*cpu.status()),
        sign_histogram_=cpu.sign_histogram_,
        masked_topk_=cpu.masked_topk_,
    )
)
