"""The backends of this package, in the order of registration: on a CPU the last that can run is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from types import ModuleType
from typing import Any

from layercollapse.kernels import cuda, triton_backend
from layercollapse.kernels.bits import FLOAT_TYPES
from layercollapse.ops import cpu, reference
from layercollapse.ops.registry import Backend, BackendStatus, register, reserve

_OPS = [field.name for field in fields(Backend) if field.name.endswith("_")]


def _own(name: str, module: ModuleType, status: Callable[[], tuple[bool, str]], *devices: str) -> None:
    """Register a module that has ops under their names; without devices it runs on all, and reads every type."""
    ops: dict[str, Any] = {op: getattr(module, op, None) for op in _OPS}
    register(
        Backend(
            name=name,
            devices=frozenset(devices),
            dtypes=frozenset(FLOAT_TYPES if devices else ()),
            status=lambda: BackendStatus(*status()),
            **ops,
        )
    )


_own("reference", reference, lambda: (True, "plain torch, any device"))
_own("triton", triton_backend, triton_backend.status, "cuda", *["cpu"] * triton_backend.interpreted())
_own("cuda", cuda, cuda.status, "cuda", *["cpu"] * cuda.emulated())
_own("cpu", cpu, cpu.status, "cpu")
reserve()
