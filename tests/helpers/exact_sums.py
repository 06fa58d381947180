"""A pytest plugin: matrix products and convolutions as a processor makes them that rounds a sum once, at its end.

Every processor adds in an order of its own, and the last bits of its sums are its own. A test that passes with this
plugin, and without, waits for the rounding errors of no processor. `make test-isa` runs the tests so.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

aten = torch.ops.aten
kernels = torch.library.Library("aten", "IMPL")
TYPES: dict[torch.dtype, tuple[Any, Any]] = {
    torch.float32: (np.float32, np.float64),
    torch.float64: (np.float64, np.longdouble),
}


def addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    large = a.numel() * b.shape[-1] > 10_000_000  # would take seconds in extended precision
    if a.dtype not in TYPES or (a.dtype == torch.float64 and large):
        return aten.baddbmm(c.expand(len(a), b.shape[1])[None], a[None], b[None], beta=beta, alpha=alpha)[0]
    narrow, wide = TYPES[a.dtype]
    c, a, b = (x.detach().numpy().astype(wide) for x in (c, a, b))
    with np.errstate(all="ignore"):
        total = alpha * (a @ b)
        return torch.from_numpy((total + beta * c if beta else total).astype(narrow))


def mm(a: Tensor, b: Tensor) -> Tensor:
    return addmm(a.new_zeros(()), a, b, beta=0)


def bmm(a: Tensor, b: Tensor) -> Tensor:
    return (
        torch.stack([mm(*pair) for pair in zip(a, b, strict=True)])
        if len(a)
        else a.new_zeros(0, a.shape[1], b.shape[2])
    )


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    flags = (False, False, False, False)  # benchmark, deterministic, cudnn, tf32
    if x.dtype != torch.float32:
        return aten._convolution(x, weight, bias, *arguments, *flags)
    wide = None if bias is None else bias.double()
    return aten._convolution(x.double(), weight.double(), wide, *arguments, *flags).float()


with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Warning only once for all operators,  other operators may also be overridden")
    for kernel in (addmm, mm, bmm, convolution):
        kernels.impl(kernel.__name__, kernel, "CPU", allow_override=True)
