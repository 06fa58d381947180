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
from layercollapse_core.numbers import integer, is_bound

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
    channel_dim, threads = _channel_dim(x, channel_dim), _threads(threads)
    if upper is not None and not is_bound(upper):
        raise _error(f"upper: expected a float32 above 0, got {upper!r}")
    shape = (x.shape[channel_dim], 4 if upper is None else 5)
    if out is None:
        out = np.zeros(shape, dtype=np.int64)
    elif not _is(out, np.int64, shape) or not out.flags.writeable:
        raise _error(f"out: expected a writeable contiguous int64 array of shape {shape}, got {_describe(out)}")
    elif np.may_share_memory(x, out):
        raise _error("out: expected memory of its own, got some that x covers too")
    _compiled().sign_histogram(
        [x.ctypes.data],
        [_CODES[x.dtype.name]],
        [x.shape],
        [_strides(x)],
        [channel_dim],
        [0.0 if upper is None else float(upper)],
        [out.ctypes.data],
        threads,
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
    channel_dim, threads = _channel_dim(x, channel_dim), _threads(threads)
    hashes = np.zeros(x.shape[:channel_dim] + x.shape[channel_dim + 1 :], dtype=np.int64)
    _compiled().sign_hashes(
        x.ctypes.data,
        _CODES[x.dtype.name],
        x.shape,
        _strides(x),
        channel_dim,
        hashes.ctypes.data,
        threads,
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
    _check_masked(weights, masks)
    _check_list("k", k)
    if scope not in ("layer", "global") or len(k) != (len(weights) if scope == "layer" else 1):
        raise _error(f"k: expected one per weight for 'layer' or one for 'global', got {len(k)} for {scope!r}")
    numbers = [integer(entry) for entry in k]
    for index, number in enumerate(numbers):
        if number is None or number < 0:
            raise _error(f"k[{index}]: expected an int of at least 0, got {k[index]!r}")
    threads = _threads(threads)
    thresholds = np.empty(len(k), dtype=np.float32)
    code, index, kept = _compiled().masked_topk(
        *_memory(weights, masks),
        numbers,
        scope == "global",
        thresholds.ctypes.data,
        threads,
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
    _check_masked(weights, masks, masks_change=False)
    _compiled().apply_mask(*_memory(weights, masks), _threads(threads))


def _check_masked(weights: Sequence[np.ndarray], masks: Sequence[np.ndarray], *, masks_change: bool = True) -> None:
    _check_list("weights", weights)
    _check_list("masks", masks)
    if len(masks) != len(weights):
        raise _error(f"masks: expected one for each of {len(weights)} weights, got {len(masks)}")
    begins: list[int] = []  # weights and masks in turn
    lengths: list[int] = []
    for index, (weight, mask) in enumerate(zip(weights, masks, strict=True)):
        _check_floats(f"weights[{index}]", weight)
        length = (weight.size + 7) // 8
        if not _is(mask, np.uint8, (length,)):
            raise _error(
                f"masks[{index}]: expected a contiguous uint8 array of shape ({length},), got {_describe(mask)}"
            )
        for name, array in (("weights", weight), ("masks", mask)) if masks_change else (("weights", weight),):
            if not array.flags.writeable:
                raise _error(f"{name}[{index}]: expected a writeable array, got a read-only one")
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


def _channel_dim(x: np.ndarray, channel_dim: object) -> int:
    """Return it counted from the front; raise unless x is an array of floats that has it."""
    _check_floats("x", x)
    number = integer(channel_dim)
    if number is None or not -x.ndim <= number < x.ndim:
        raise _error(f"channel_dim: expected a dimension of x, which has {x.ndim}, got {channel_dim!r}")
    return number % x.ndim


def _threads(threads: object) -> int:
    number = _cpus() if threads is None else integer(threads)
    if number is None or number < 1:
        raise _error(f"threads: expected an int of at least 1 or None, got {threads!r}")
    return min(number, 2**31 - 1)


def _check_list(name: str, value: object) -> None:
    if not isinstance(value, (list, tuple, np.ndarray)) or (isinstance(value, np.ndarray) and value.ndim == 0):
        raise _error(f"{name}: expected a list, got {_describe(value)}")


def _is(array: object, dtype: type, shape: tuple[int, ...]) -> bool:
    """Whether it is a contiguous array of this type and shape."""
    return isinstance(array, np.ndarray) and (array.dtype, array.shape) == (dtype, shape) and array.flags.c_contiguous


def _strides(array: np.ndarray) -> list[int]:
    return [stride // array.itemsize for stride in array.strides]


def _describe(value: object) -> str:
    if not isinstance(value, np.ndarray):
        return type(value).__name__
    return f"{value.dtype} of shape {value.shape}, strides {value.strides} bytes"


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
