"""The ops on NumPy arrays, without torch: the compiled core that `layercollapse.ops` uses on the CPU.

A package of its own, because importing anything inside ``layercollapse`` imports torch. Contracts, in words, are
those of `layercollapse.ops`; masks are packed by ``np.packbits(mask, bitorder="little")``.

>>> weight = np.array([3.0, -1.0, 0.5, -2.0], dtype=np.float32)
>>> mask = np.packbits([True, True, False, True], bitorder="little")
>>> masked_topk_([weight], [mask], [1])
array([1.], dtype=float32)
>>> weight
array([ 3.,  0.,  0., -2.], dtype=float32)
>>> sign_histogram(weight, channel_dim=0)[:, 2].tolist()  # the positive
[1, 0, 0, 0]
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from layercollapse_core.installed import cmake_dir, include_dir, library
from layercollapse_core.memory import overlap, reach

__all__ = [
    "apply_mask_",
    "cmake_dir",
    "include_dir",
    "library",
    "masked_topk_",
    "sign_hashes",
    "sign_histogram",
]

# By name: bfloat16 is a NumPy type only where a package such as ml_dtypes adds it. Codes of csrc/dtypes.h.
_CODES = {"float32": 0, "bfloat16": 1, "float16": 2}
_NAN, _TOO_MANY = 1, 2  # TopkResult::Code


def sign_histogram(
    x: np.ndarray,
    *,
    channel_dim: int = 1,
    upper: float | None = None,
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Count the signs in every channel; see `layercollapse.ops.sign_histogram`.

    Args:
        x: float32, float16 or bfloat16; any shape and strides (whole entries), C entries along ``channel_dim``.
        channel_dim: dimension of the channels.
        upper: also count ``x >= upper``.
        out: int64 (C, 4), or (C, 5) with ``upper``: counts to add to.
        threads: how many to use; all of this process's CPUs by default.

    Returns:
        ``out``, or a new array like it: negative, zero, positive, NaN [, at or above ``upper``].
    """
    _check_floats("x", x)
    if not -x.ndim <= channel_dim < x.ndim:
        raise _error(f"channel_dim: expected a dimension of x, which has {x.ndim}, got {channel_dim}")
    if upper is not None and not upper > 2.0**-150:
        raise _error(f"upper: expected a float32 above 0, got {upper}")
    shape = (x.shape[channel_dim], 4 if upper is None else 5)
    if out is None:
        out = np.zeros(shape, dtype=np.int64)
    elif (out.dtype, out.shape) != (np.int64, shape) or not out.flags.c_contiguous or not out.flags.writeable:
        raise _error(f"out: expected a writeable contiguous int64 array of shape {shape}, got {_describe(out)}")
    _compiled().sign_histogram(
        [x.ctypes.data],
        [_CODES[x.dtype.name]],
        [x.shape],
        [_strides(x)],
        [channel_dim % x.ndim],
        [upper or 0.0],
        [out.ctypes.data],
        threads or _cpus(),
    )
    return out


def sign_hashes(x: np.ndarray, *, channel_dim: int = 1, threads: int | None = None) -> np.ndarray:
    """Hash the signs of every row; see `layercollapse.ops.sign_hashes`.

    Args:
        x: float32, float16 or bfloat16; any shape and strides (whole entries), C entries along ``channel_dim``.
        channel_dim: dimension of the channels.
        threads: how many to use; all of this process's CPUs by default.

    Returns:
        int64, the shape of x without ``channel_dim``.
    """
    _check_floats("x", x)
    if not -x.ndim <= channel_dim < x.ndim:
        raise _error(f"channel_dim: expected a dimension of x, which has {x.ndim}, got {channel_dim}")
    channel_dim %= x.ndim
    hashes = np.zeros(x.shape[:channel_dim] + x.shape[channel_dim + 1 :], dtype=np.int64)
    _compiled().sign_hashes(
        x.ctypes.data,
        _CODES[x.dtype.name],
        x.shape,
        _strides(x),
        channel_dim,
        hashes.ctypes.data,
        threads or _cpus(),
    )
    return hashes


def masked_topk_(
    weights: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    k: Sequence[int],
    *,
    scope: str = "layer",
    threads: int | None = None,
) -> np.ndarray:
    """Clear the k smallest magnitudes among the kept entries, in place; see `layercollapse.ops.masked_topk_`.

    Args:
        weights: float32, float16 or bfloat16, writeable, without overlap.
        masks: uint8 (ceil(size / 8),) each, contiguous, writeable.
        k: one number per weight (``scope="layer"``) or one in all (``scope="global"``).
        scope: what is ranked together.
        threads: how many to use; all of this process's CPUs by default.

    Returns:
        float32 (len(k),): the largest magnitude cleared, 0 where none was.
    """
    if scope not in ("layer", "global") or len(k) != (len(weights) if scope == "layer" else 1):
        raise _error(f"k: expected one per weight for 'layer' or one for 'global', got {len(k)} for {scope!r}")
    if min(k, default=0) < 0:
        raise _error(f"k: expected numbers of at least 0, got {min(k)}")
    _check_masked(weights, masks)
    thresholds = np.empty(len(k), dtype=np.float32)
    code, index, kept = _compiled().masked_topk(
        *_memory(weights, masks),
        list(k),
        scope == "global",
        thresholds.ctypes.data,
        threads or _cpus(),
    )
    if code == _NAN:
        raise _error(f"weights[{index}]: expected numbers, got NaN; nothing was changed")
    if code == _TOO_MANY:
        raise _error(f"k[{index}]: expected at most the {kept} entries kept, got {k[index]}; nothing was changed")
    return thresholds


def apply_mask_(weights: Sequence[np.ndarray], masks: Sequence[np.ndarray], *, threads: int | None = None) -> None:
    """Set every entry without a keep-bit to +0, in place; see `layercollapse.ops.apply_mask_`.

    Args:
        weights: float32, float16 or bfloat16, writeable, without overlap.
        masks: uint8 (ceil(size / 8),) each, contiguous.
        threads: how many to use; all of this process's CPUs by default.
    """
    _check_masked(weights, masks)
    _compiled().apply_mask(*_memory(weights, masks), threads or _cpus())


def _check_masked(weights: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> None:
    if len(masks) != len(weights):
        raise _error(f"masks: expected one for each of {len(weights)} weights, got {len(masks)}")
    begins: list[int] = []  # weights and masks in turn
    lengths: list[int] = []
    for index, (weight, mask) in enumerate(zip(weights, masks, strict=True)):
        _check_floats(f"weights[{index}]", weight)
        length = (weight.size + 7) // 8
        if (mask.dtype, mask.shape) != (np.uint8, (length,)) or not mask.flags.c_contiguous:
            raise _error(
                f"masks[{index}]: expected a contiguous uint8 array of shape ({length},), got {_describe(mask)}"
            )
        if not weight.flags.writeable or not mask.flags.writeable:
            raise _error(f"weights[{index}]: expected writeable arrays, got a read-only one")
        entries = reach(weight.shape, _strides(weight)) if length else 0
        if entries is None:
            raise _error(f"weights[{index}]: expected a place for every entry, got {_describe(weight)}")
        begins += (weight.ctypes.data, mask.ctypes.data)
        lengths += (entries * weight.itemsize, length)
    if shared := overlap(begins, lengths):
        one, other = (f"{('weights', 'masks')[block % 2]}[{block // 2}]" for block in shared)
        raise _error(f"{other}: expected memory of its own, got some that {one} covers too")


def _memory(
    weights: Sequence[np.ndarray], masks: Sequence[np.ndarray]
) -> tuple[list[int], list[int], list[int], list[int], list[tuple[int, tuple[int, ...], list[int]]]]:
    return (
        [weight.ctypes.data for weight in weights],
        [mask.ctypes.data for mask in masks],
        [_CODES[weight.dtype.name] for weight in weights],
        [weight.size for weight in weights],
        [(i, w.shape, _strides(w)) for i, w in enumerate(weights) if not w.flags.c_contiguous],
    )


def _compiled():
    try:
        from layercollapse_core import _core
    except ImportError as error:
        raise _error("the C++ core is not built: install with GCC or Clang") from error
    return _core


def _error(message: str) -> ValueError:
    from layercollapse.errors import LayerCollapseError  # brings torch, but only to say what went wrong

    return LayerCollapseError(message)


def _check_floats(name: str, array: np.ndarray) -> None:
    if not isinstance(array, np.ndarray) or array.dtype.name not in _CODES or not array.dtype.isnative:
        raise _error(f"{name}: expected a float32, float16 or bfloat16 array, got {_describe(array)}")
    if any(stride % array.itemsize for stride in array.strides) or not array.flags.aligned:
        raise _error(f"{name}: expected strides of whole aligned entries, got {_describe(array)}")


def _strides(array: np.ndarray) -> list[int]:
    return [stride // array.itemsize for stride in array.strides]


def _describe(value: object) -> str:
    if not isinstance(value, np.ndarray):
        return type(value).__name__
    return f"{value.dtype} of shape {value.shape}, strides {value.strides} bytes"


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
