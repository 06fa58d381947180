"""sign_histogram in Triton: plans the tensors of a call, and launches the kernels of `sign_kernels` on them.

csrc/plan/sign_plan.h cuts activations into columns, runs and strided parts, and each of these into a line of units, of
which every program takes as many. Of a list of tensors, parts that one variant of a kernel counts are one line: a table
of them is copied to the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from layercollapse_core import _core
from torch import Tensor

from layercollapse.kernels.bits import FLOAT_TYPES
from layercollapse.kernels.launch import capturing, on_device_of, program_count
from layercollapse.kernels.sign_kernels import (
    columns_kernel,
    columns_list_kernel,
    runs_kernel,
    runs_list_kernel,
    strided_kernel,
)
from layercollapse.kernels.tables import Table
from layercollapse.kernels.triton_launch import Launch

LIMITS = _core.SignLimits()
# Programs that a multiprocessor holds at once, of 128 threads with the registers that `kernels.compile` prints.
RESIDENT = {_core.Columns: 4, _core.Runs: 8, _core.Strided: 2}
RESIDENT_LIST = 4  # the same of the kernels of a list


class Part(NamedTuple):
    """What counts one part: arguments after start and units, and the constants that choose a variant of the kernel."""

    launch: Launch  # for it alone
    list_kernel: Any  # None: there is none
    units: int
    least: int  # units of a program
    index: int  # of the tensor
    word: Any  # what the kernel takes the tensor for
    start: int  # in vectors; of the strided kernel in entries
    arguments: tuple[int, ...]
    constants: dict[str, Any]


class PartList:
    """Parts of many tensors that one launch counts, over a table of them on the device."""

    def __init__(self, parts: Sequence[Part], like: Tensor) -> None:
        self._parts = parts
        self._units = sum(part.units for part in parts)
        programs = _core.block_count(self._units, program_count(like, RESIDENT_LIST), parts[0].least)
        self._launch = Launch(parts[0].list_kernel, programs, parts[0].constants, num_warps=4)
        self._kept: tuple[list[int], Table] | None = None  # of the last call: activations often lie where others lay

    def count(self, xs: Sequence[Tensor], outs: Sequence[Tensor]) -> None:
        addresses = [tensors[part.index].data_ptr() for tensors in (xs, outs) for part in self._parts]
        kept = self._kept
        if kept is None or kept[0] != addresses:
            self._kept = kept = (addresses, Table(self._table(addresses), xs[0]))
        self._launch(kept[1].here(), len(self._parts), self._units)

    def _table(self, addresses: Sequence[int]) -> Tensor:
        rows: list[tuple[int, ...]] = []
        units, count = 0, len(self._parts)
        for part, x, out in zip(self._parts, addresses[:count], addresses[count:], strict=True):
            rows.append((units, units + part.units, x + _core.VECTOR * part.start, out, *part.arguments))
            units += part.units
        return torch.tensor(rows, dtype=torch.int64)


def sign_histogram_(x: Tensor, channel_dim: int, upper: float | None, out: Tensor) -> None:
    """See ``reference.sign_histogram_``: one read of x, any strides."""
    sign_histograms_([x], [channel_dim], [upper], [out])


def sign_histograms_(
    xs: Sequence[Tensor], channel_dims: Sequence[int], uppers: Sequence[float | None], outs: Sequence[Tensor]
) -> None:
    """Count many tensors: one launch for all that one variant of a kernel counts; see `sign_histogram_`.

    While a CUDA graph is captured, each has its own: the graph would read a table again whenever it is replayed.
    """
    sign_histograms_again_(xs, channel_dims, uppers, outs)(xs, outs)


def sign_histograms_again_(
    xs: Sequence[Tensor], channel_dims: Sequence[int], uppers: Sequence[float | None], outs: Sequence[Tensor]
) -> Callable[[Sequence[Tensor], Sequence[Tensor]], None]:
    """See ``Backend``."""
    groups: dict[Hashable, list[Part]] = {}
    for index, arguments in enumerate(zip(xs, channel_dims, uppers, outs, strict=True)):
        for part in _plan(index, *arguments):
            groups.setdefault(tuple(part.constants.items()), []).append(part)  # no two kernels have one set
    joined = [
        (parts, PartList(parts, xs[0]) if len(parts) > 1 and parts[0].list_kernel else None)
        for parts in groups.values()
    ]

    def call(xs: Sequence[Tensor], outs: Sequence[Tensor]) -> None:
        with on_device_of(xs[0]):
            for parts, together in joined:
                if together is not None and not capturing(xs[0]):
                    together.count(xs, outs)
                else:
                    for part in parts:
                        _count(part, xs[part.index], outs[part.index])

    return call


def _plan(index: int, x: Tensor, channel_dim: int, upper: float | None, out: Tensor) -> Iterator[Part]:
    """Yield what counts one tensor."""
    channels, n_out = out.shape
    kind = FLOAT_TYPES[x.dtype]
    vector = _core.VECTOR // kind.width
    parts, repeat = _core.sign_plan(x.shape, x.stride(), channel_dim % x.dim(), kind.width, x.data_ptr(), LIMITS)
    for part in parts:
        line, units, resident = (part.chunks, part.most), part.strips * part.chunks, RESIDENT[type(part)]
        gaps, constants = _of_type(x.dtype, upper, packed=not isinstance(part, _core.Strided))
        constants["N_OUT"] = n_out
        if isinstance(part, _core.Columns):
            (groups, outer_stride), (inner_size, inner_stride) = part.outer, part.inner
            strides = (outer_stride // vector, inner_stride // vector, inner_size)
            shape = (groups * inner_size, part.width // vector, *strides, part.run, channels)
            constants |= {"RUNS": part.run > 1, "NESTED": groups > 1, "COLS": part.cols, "UNROLL": LIMITS.unroll}
            constants["ROWS"] = LIMITS.block // part.cols
            kernels, least = (columns_kernel, columns_list_kernel), LIMITS.unroll
        elif isinstance(part, _core.Runs):
            shape = (part.width // vector, part.channel_stride // vector, part.outer[1] // vector)
            constants |= {"BLOCK": LIMITS.block, "UNROLL": LIMITS.unroll}
            kernels, least = (runs_kernel, runs_list_kernel), 1
        else:
            sizes, strides = zip(*part.dims, strict=True)
            shape = (channels, part.channel_stride, math.prod(sizes), *sizes[1:], *strides)
            constants |= {"SAMPLES": part.tile, "CHANNELS": part.cols}
            kernels, least = (strided_kernel, None), 1
        strided = isinstance(part, _core.Strided)
        start = part.start if strided else part.start // vector
        word = tl.uint16 if strided and kind.width == 2 else tl.uint32
        programs = _core.block_count(units, program_count(x, resident), least)
        launch = Launch(kernels[0], programs, constants, num_warps=4)
        arguments = (*line, *shape, repeat, *gaps)
        yield Part(launch, kernels[1], units, least, index, word, start, arguments, constants)


def _count(part: Part, x: Tensor, out: Tensor) -> None:
    part.launch(triton.reinterpret(x, part.word), out, part.start, part.units, *part.arguments)


def _of_type(dtype: torch.dtype, upper: float | None, packed: bool) -> tuple[tuple[int, int], dict[str, Any]]:
    """Return the arguments and the constants of the kernels that depend on the type alone."""
    kind = FLOAT_TYPES[dtype]
    top = 1 << (8 * kind.width - 1)
    nan_gap = top - 1 - kind.infinity
    upper_gap = 0 if upper is None else top - _core.magnitude_at_least(kind.code, upper)
    if not packed:
        left = 32 - 8 * kind.width
        return (nan_gap << left, upper_gap << left), {"LEFT": left}
    pair = 0x00010001 if kind.width == 2 else 1
    constants = {"MAGNITUDE": (top - 1) * pair, "SIGN": top * pair, "SHIFT": 8 * kind.width - 1}
    return (nan_gap * pair, upper_gap * pair), constants | {"PACKED": kind.width == 2}
