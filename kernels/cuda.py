"""The ops in CUDA C++: the launches, by ctypes, of the library that setup.py makes of csrc/cuda when it finds nvcc."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Sequence
from ctypes import byref, c_int64, c_void_p
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple
from weakref import finalize

import numpy as np
import torch
from torch import Tensor

from layercollapse.kernels import topk_plan
from layercollapse.kernels.bits import FLOAT_TYPES
from layercollapse.kernels.launch import on_device, on_device_of
from layercollapse.kernels.tables import Table
from layercollapse.kernels.topk_call import masked_topk_again_with, masked_topk_with

# A library that runs the same kernels on the CPU, made by tests/kernels/test_gpu_on_cpu.py.
EMULATED = "LAYERCOLLAPSE_CUDA_EMULATED"

SCOPES = {"layer": 0, "global": 1, "count": 2}  # LC_TOPK_LAYER and so on in layercollapse.h


@cache
def library() -> ctypes.CDLL:
    """Load the library; OSError if it was not built."""
    path = os.environ.get(EMULATED)
    if path is None:
        spec = find_spec("layercollapse_core._cuda")
        if spec is None or spec.origin is None:
            raise OSError("install with nvcc on the path, or CUDA_HOME set")
        path = spec.origin
    loaded = ctypes.CDLL(path)
    loaded.lc_error.restype = ctypes.c_char_p
    loaded.lc_sign_histogram.argtypes = loaded.lc_sign_hashes.argtypes = (c_void_p, c_int64, c_void_p)
    loaded.lc_sign_limits.argtypes = (c_int64, c_int64)
    loaded.lc_topk_tables.restype = ctypes.POINTER(c_int64)
    loaded.lc_topk_segments.restype = loaded.lc_topk_scratch.restype = c_int64
    return loaded


@cache
def status() -> tuple[bool, str]:
    """Whether the CUDA kernels can be used, and on what, or why not."""
    try:
        loaded = library()
    except OSError as error:
        return False, f"the CUDA part is not built: {error}"
    if emulated():
        return True, "CUDA C++ on the CPU: for tests"
    count = ctypes.c_int(0)
    error = loaded.lc_device_count(ctypes.byref(count))
    if error or not count.value or not torch.cuda.is_available():
        reason = loaded.lc_error(error).decode() if error else "torch sees none"
        return False, f"no CUDA device ({reason})"
    return True, f"CUDA C++, {torch.cuda.get_device_name()}"


def emulated() -> bool:
    """Whether the kernels run on the CPU, on tensors of the CPU."""
    return EMULATED in os.environ


def sign_histogram_(x: Tensor, channel_dim: int, upper: float | None, out: Tensor) -> None:
    """See ``reference.sign_histogram_``: one read of x, any strides."""
    sign_histograms_([x], [channel_dim], [upper], [out])


def sign_histograms_(
    xs: Sequence[Tensor], channel_dims: Sequence[int], uppers: Sequence[float | None], outs: Sequence[Tensor]
) -> None:
    """See ``reference.sign_histograms_``: one launch for up to 50 tensors of one width that are read in one way."""
    sign_histograms_again_(xs, channel_dims, uppers, outs)(xs, outs)


def sign_histograms_again_(
    xs: Sequence[Tensor], channel_dims: Sequence[int], uppers: Sequence[float | None], outs: Sequence[Tensor]
) -> Callable[[Sequence[Tensor], Sequence[Tensor]], None]:
    """See ``Backend``."""
    table, device = _activations(xs, channel_dims, uppers, outs), xs[0].device

    def call(xs: Sequence[Tensor], outs: Sequence[Tensor]) -> None:
        fields = type(table.fields).from_buffer_copy(table.fields)  # another thread may call at the same time
        for index, (x, out) in enumerate(zip(xs, outs, strict=True)):
            fields[8 * index], fields[8 * index + 1] = x.data_ptr(), out.data_ptr()
        with on_device(device):
            _check("lc_sign_histogram", library().lc_sign_histogram(fields, len(xs), _stream(device)))

    return call


def sign_hashes_(x: Tensor, channel_dim: int, out: Tensor) -> None:
    """See ``reference.sign_hashes_``: one read of x, any strides."""
    table = _activations([x], [channel_dim], [None], [out])
    with on_device_of(x):
        _check("lc_sign_hashes", library().lc_sign_hashes(table.fields, 1, _stream(x.device)))


class _Activations(NamedTuple):
    """An array of lc_activation (csrc/python/include/layercollapse.h), and the sizes and strides that it points to."""

    fields: ctypes.Array[c_int64]
    memory: ctypes.Array[c_int64]


def _activations(
    xs: Sequence[Tensor], channel_dims: Sequence[int], uppers: Sequence[float | None], outs: Sequence[Tensor]
) -> _Activations:
    numbers = [number for x in xs for number in (*x.shape, *x.stride())]
    memory = (c_int64 * len(numbers))(*numbers)
    place = ctypes.addressof(memory)
    fields: list[int] = []  # 8 bytes each
    for x, channel_dim, upper, out in zip(xs, channel_dims, uppers, outs, strict=True):
        dims = x.dim()
        bits = 0 if upper is None else struct.unpack("q", struct.pack("d", upper))[0]
        fields += (x.data_ptr(), out.data_ptr(), place, place + 8 * dims, dims)
        fields += (channel_dim % dims, FLOAT_TYPES[x.dtype].code, bits)
        place += 16 * dims
    return _Activations((c_int64 * len(fields))(*fields), memory)


def masked_topk_(weights: Sequence[Tensor], masks: Sequence[Tensor], k: Sequence[int], scope: str) -> Tensor:
    """See ``reference.masked_topk_`` and, for errors and CUDA graphs, `topk_call.masked_topk_with`."""
    return masked_topk_with(_TopkPlan, weights, masks, k, scope)


def masked_topk_again_(
    weights: Sequence[Tensor], masks: Sequence[Tensor], scope: str
) -> Callable[[Sequence[int]], Tensor]:
    """See ``Backend``."""
    return masked_topk_again_with(_TopkPlan, weights, masks, scope)


def topk_count_(weights: Sequence[Tensor], masks: Sequence[Tensor], lo: int, hi: int, counts: Tensor) -> None:
    """See ``reference.topk_count_``: one read of weights and masks, no wait."""
    with on_device_of(weights[0]):
        plan = topk_plan.plan_for(_TopkPlan, weights, masks, "count")
        table = c_void_p(plan.table.here().data_ptr())
        place = (c_void_p(counts.data_ptr()), _stream(counts.device))
        _check("lc_topk_count", library().lc_topk_count(plan.handle, table, c_int64(lo), c_int64(hi), *place))


class _TopkPlan(topk_plan.Plan):
    """A plan that the library made and owns until this is gone."""

    def __init__(self, weights: Sequence[Tensor], masks: Sequence[Tensor], scope: str) -> None:
        numbers = _weights(weights, masks)
        self.handle = c_void_p()
        wanted, shortest = c_int64(topk_plan.segments_wanted(weights[0])), c_int64(topk_plan.SHORTEST)
        loaded, of = library(), byref(self.handle)
        _check(
            "lc_topk_plan_create",
            loaded.lc_topk_plan_create(numbers, c_int64(len(weights)), SCOPES[scope], wanted, shortest, of),
        )
        finalize(self, loaded.lc_topk_plan_destroy, self.handle)
        count = c_int64()
        tables = loaded.lc_topk_tables(self.handle, byref(count))
        host = np.ctypeslib.as_array(tables, (count.value,)).copy()
        self.table = Table(torch.from_numpy(host), weights[0])
        self.segments = loaded.lc_topk_segments(self.handle)
        self.scratch = loaded.lc_topk_scratch(self.handle)

    def launch(self, k: Sequence[int], scratch: Tensor, thresholds: Tensor) -> None:
        places = (c_void_p(scratch.data_ptr()), c_void_p(thresholds.data_ptr()), _stream(scratch.device))
        error = library().lc_masked_topk(self.handle, c_void_p(self.table.here().data_ptr()), _struct(*k), *places)
        _check("lc_masked_topk", error)

    def outcome(self, k: Sequence[int], scratch: Tensor) -> tuple[int, int, int]:
        index, kept, code = c_int64(), c_int64(), ctypes.c_int()
        call = (self.handle, _struct(*k), c_void_p(scratch.data_ptr()), _stream(scratch.device))
        _check("lc_topk_outcome", library().lc_topk_outcome(*call, byref(index), byref(kept), byref(code)))
        return code.value, index.value, kept.value


def apply_mask_(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """See ``reference.apply_mask_``; a CUDA graph may capture it at any time."""
    apply_mask_again_(weights, masks)()


def apply_mask_again_(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> Callable[[], None]:
    """See ``Backend``."""
    table, count, device = _weights(weights, masks), c_int64(len(weights)), weights[0].device

    def call() -> None:
        with on_device(device):
            _check("lc_apply_mask", library().lc_apply_mask(table, count, _stream(device)))

    return call


def _weights(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> ctypes.Array[c_int64]:
    """Return an array of lc_weight, and behind it what its last two fields point to."""
    numbers = (c_int64 * (len(weights) * 6 + sum(2 * weight.dim() for weight in weights)))()
    heads: list[int] = []
    tails: list[int] = []
    at = ctypes.addressof(numbers) + len(weights) * 48
    for weight, mask in zip(weights, masks, strict=True):
        dims, code = weight.dim(), FLOAT_TYPES[weight.dtype].code
        heads += (weight.data_ptr(), mask.data_ptr(), code, dims, at, at + 8 * dims)
        tails += (*weight.shape, *weight.stride())
        at += 16 * dims
    numbers[:] = heads + tails
    return numbers


def _struct(*values: int) -> ctypes.Array[c_int64]:
    """Return a structure of layercollapse.h: all of its fields have 8 bytes."""
    return (c_int64 * len(values))(*values)


def _stream(device: torch.device) -> c_void_p:
    # As Triton asks for it: torch.cuda.current_stream makes an object in Python.
    return c_void_p(torch._C._cuda_getCurrentRawStream(device.index) if device.type == "cuda" else 0)


def _check(name: str, error: int) -> None:
    if error:
        raise RuntimeError(f"{name}: {library().lc_error(error).decode()}")
