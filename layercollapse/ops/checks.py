"""What is wrong with an op's arguments, found before any byte changes; one wording for every backend."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

import torch
from layercollapse_core import numbers
from layercollapse_core.memory import overlap, reach
from torch import Tensor

from layercollapse._util.tensors import describe
from layercollapse.errors import LayerCollapseError

MOST_DIMS = 64  # NumPy's limit, that of torch's own loops, and kMaxDims in csrc/layout.h
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_sign_histogram(x: Tensor, channel_dim: int, upper: float | None, out: Tensor, at: str = "") -> None:
    """Raise unless the arguments of ``sign_histogram_`` are ones that every backend may read and write.

    Args:
        x: the activation.
        channel_dim: its dimension of channels.
        upper: the bound.
        out: the counts.
        at: ``"[2]"`` where these are the third of lists, for the message.
    """
    check_activation(x, channel_dim, upper, at)
    expected = (x.shape[channel_dim], 4 if upper is None else 5)
    if out.dtype != torch.int64 or tuple(out.shape) != expected or not out.is_contiguous():
        raise LayerCollapseError(
            f"out{at}: expected a contiguous int64 tensor of shape {expected}, got {describe(out)}"
        )
    check_out_device(x, out, at)
    begin, end = (0, 0) if at else extent(x)  # of lists, all are compared with all
    if begin < out.data_ptr() + out.nbytes and out.data_ptr() < end:
        raise _shared_error(f"out{at}", f"x{at}")


def check_out_device(x: Tensor, out: Tensor, at: str = "") -> None:
    """Raise unless both are on one device."""
    if out.device != x.device:
        raise LayerCollapseError(f"out{at}: expected the device of x{at}, {x.device}, got {out.device}")


def check_sign_histograms(
    xs: Sequence[Tensor], channel_dims: Sequence[int], uppers: Sequence[float | None], outs: Sequence[Tensor]
) -> None:
    """Raise unless the arguments of ``sign_histograms_`` are ones that every backend may read and write."""
    check_lengths(len(xs), channel_dim=channel_dims, upper=uppers, out=outs)
    for index, (x, channel_dim, upper, out) in enumerate(zip(xs, channel_dims, uppers, outs, strict=True)):
        check_sign_histogram(x, channel_dim, upper, out, f"[{index}]")
    check_one_device(x=xs)
    shared = overlap([out.data_ptr() for out in outs], [out.nbytes for out in outs])
    if shared:
        one, other = sorted(shared)
        raise _shared_error(f"out[{other}]", f"out[{one}]")
    common = common_memory(list(map(extent, xs)), [(out.data_ptr(), out.data_ptr() + out.nbytes) for out in outs])
    if common:
        raise _shared_error(f"out[{common[1]}]", f"x[{common[0]}]")


def common_memory(xs: Sequence[tuple[int, int]], outs: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Return the positions of one of xs and one of outs that share a byte, or None.

    Args:
        xs: addresses of the first byte of each, and past the last.
        outs: the same; no two of them share a byte.
    """
    order = sorted((index for index, (begin, end) in enumerate(outs) if begin < end), key=outs.__getitem__)
    begins = [outs[index][0] for index in order]
    for index, (begin, end) in enumerate(xs):
        # None covers another's memory: of those that begin before x ends, the last is the one that ends last.
        last = bisect_left(begins, end) - 1
        if begin < end and last >= 0 and outs[order[last]][1] > begin:
            return index, order[last]
    return None


def _shared_error(one: str, other: str) -> LayerCollapseError:
    return LayerCollapseError(f"{one}: expected memory of its own, got some that {other} covers too")


def extent(x: Tensor) -> tuple[int, int]:
    """Return the addresses of the first byte of a dense tensor, and past the last; equal ones if it is empty."""
    begin = x.data_ptr()
    if x.is_contiguous():
        return begin, begin + x.nbytes
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return begin, begin + (last + 1) * x.element_size() if x.numel() else begin


def check_lengths(count: int, **lists: Sequence[object]) -> None:
    """Raise unless each list has one entry for each of so many tensors."""
    for name, entries in lists.items():
        if len(entries) != count:
            raise LayerCollapseError(f"{name}: expected one for each of {count} tensors, got {len(entries)}")


def check_one_device(**lists: Sequence[Tensor]) -> None:
    """Raise unless all tensors are on the device of the first."""
    first = next(((name, tensors[0].device) for name, tensors in lists.items() if tensors), ("", None))
    for name, tensors in lists.items():
        for index, tensor in enumerate(tensors):
            if tensor.device != first[1]:
                raise LayerCollapseError(
                    f"{name}[{index}]: expected the device of {first[0]}[0], {first[1]}, got {tensor.device}"
                )


def check_activation(x: Tensor, channel_dim: int, upper: float | None, at: str = "") -> None:
    """Raise unless x is a float tensor with that channel dimension and ``upper`` is positive in float32."""
    if not isinstance(x, Tensor):
        raise LayerCollapseError(f"x{at}: expected a tensor, got {type(x).__name__}")
    if x.dtype not in DTYPES or not dense(x):
        raise LayerCollapseError(f"x{at}: expected a dense {_names(DTYPES)} tensor, got {describe(x)}")
    if x.dim() > MOST_DIMS:
        raise _dims_error(f"x{at}", x)
    if not -x.dim() <= integer(f"channel_dim{at}", channel_dim) < x.dim():
        raise LayerCollapseError(
            f"channel_dim{at}: expected a dimension of x{at}, which has {x.dim()}, got {channel_dim!r}"
        )
    if upper is not None and not numbers.is_bound(upper):
        raise LayerCollapseError(f"upper{at}: expected a float32 above 0, got {upper!r}")


def dense(tensor: Tensor) -> bool:
    """Whether a tensor has strides: it is not sparse, nested, or in another library's layout."""
    return tensor.layout == torch.strided and not tensor.is_nested


def _dims_error(name: str, tensor: Tensor) -> LayerCollapseError:
    return LayerCollapseError(f"{name}: expected at most {MOST_DIMS} dimensions, got {tensor.dim()}")


def integer(name: str, value: object) -> int:
    """Return a number as an int; raise unless it is an integer of 64 bits, and no bool."""
    number = numbers.integer(value)
    if number is None:
        raise LayerCollapseError(f"{name}: expected an int of at most 64 bits, got {value!r}")
    return number


def check_masked_topk(weights: Sequence[Tensor], masks: Sequence[Tensor], k: Sequence[int], scope: str) -> None:
    """Raise unless the arguments of ``masked_topk_`` fit together and no two tensors share memory."""
    check_counts(len(weights), k, scope)
    check_masked(weights, masks)


def check_counts(tensors: int, k: Sequence[int], scope: str) -> None:
    """Raise unless there are as many numbers k as groups of so many tensors, none below 0."""
    if scope not in ("layer", "global"):
        raise LayerCollapseError(f"scope: expected 'layer' or 'global', got {scope!r}")
    expected = tensors if scope == "layer" else 1
    if len(k) != expected:
        raise LayerCollapseError(f"k: expected {expected} numbers for scope={scope!r}, got {len(k)}")
    if k and min(k) < 0:
        raise LayerCollapseError(f"k: expected numbers of at least 0, got {min(k)}")


def check_masked(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Raise unless there is a mask that fits for every weight, and no two tensors share memory."""
    if len(masks) != len(weights):
        raise LayerCollapseError(f"masks: expected one for each of {len(weights)} weights, got {len(masks)}")
    device = weights[0].device if weights else None
    begins: list[int] = []  # weights and masks in turn
    lengths: list[int] = []
    for index, (weight, mask) in enumerate(zip(weights, masks, strict=True)):
        if weight.dtype not in DTYPES or not dense(weight) or weight.device != device:
            raise LayerCollapseError(
                f"weights[{index}]: expected a dense {_names(DTYPES)} tensor on {device}, got {describe(weight)}"
            )
        if weight.dim() > MOST_DIMS:
            raise _dims_error(f"weights[{index}]", weight)
        numel = weight.numel()
        length = (numel + 7) // 8
        fits = mask.dtype == torch.uint8 and mask.dim() == 1 and mask.numel() == length and mask.is_contiguous()
        if not fits or mask.device != device:
            raise LayerCollapseError(
                f"masks[{index}]: expected a contiguous uint8 tensor of shape ({length},) on {device}, "
                f"for a weight of {numel} entries, got {describe(mask)}"
            )
        begins += (weight.data_ptr(), mask.data_ptr())
        lengths += (_bytes_of(weight, index) if numel else 0, length)
    if shared := overlap(begins, lengths):
        one, other = (f"{('weights', 'masks')[block % 2]}[{block // 2}]" for block in shared)
        raise LayerCollapseError(
            f"{other}: expected memory of its own, got some that {one} covers too; give a shared weight once"
        )


def _bytes_of(weight: Tensor, index: int) -> int:
    """Return the bytes from the first to past the last entry; raise if two entries may be in one place."""
    if weight.is_contiguous():
        return weight.numel() * weight.element_size()
    entries = reach(weight.shape, weight.stride())
    if entries is None:
        raise LayerCollapseError(
            f"weights[{index}]: expected every entry to have its own place in memory, "
            f"got shape {tuple(weight.shape)} with strides {weight.stride()}"
        )
    return entries * weight.element_size()


def check_in_place(name: str, tensor: Tensor) -> None:
    """Raise if a tensor that is to be written is a lazily negated view, whose memory holds other values."""
    # What torch.compile traces is never one, and it cannot trace the question.
    if not torch.compiler.is_compiling() and tensor.is_neg():
        raise LayerCollapseError(
            f"{name}: expected a tensor that holds its values, got a negated view (of a conjugate's imaginary part, "
            "say); give what resolve_neg() makes of it"
        )


def check_packed(packed: Tensor, shape: Sequence[int]) -> None:
    """Raise unless packed holds one bit for each entry of shape."""
    sizes = shape if isinstance(shape, (list, tuple)) else [-1]
    if min((-1 if (number := numbers.integer(size)) is None else number for size in sizes), default=0) < 0:
        raise LayerCollapseError(f"shape: expected a tuple of sizes that are not below 0, got {shape!r}")
    length = (math.prod(shape) + 7) // 8
    fits = isinstance(packed, Tensor) and packed.dtype == torch.uint8 and dense(packed) and packed.shape == (length,)
    if not fits:
        raise LayerCollapseError(
            f"packed: expected a uint8 tensor of shape ({length},) for shape {tuple(shape)}, got {describe(packed)}"
        )


def nan_error(index: int) -> LayerCollapseError:
    """Return the error for a NaN found in a weight."""
    return LayerCollapseError(f"weights[{index}]: expected numbers, got NaN; nothing was changed")


def too_many_error(index: int, scope: str, k: int, kept: int) -> LayerCollapseError:
    """Return the error for a k above the number of entries still kept."""
    where = f"k[{index}]: expected at most the {kept} entries that weights[{index}] has kept"
    if scope == "global":
        where = f"k: expected at most the {kept} entries that all weights have kept together"
    return LayerCollapseError(f"{where}, got {k}; nothing was changed")


def _names(dtypes: Sequence[torch.dtype]) -> str:
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    return ", ".join(names[:-1]) + " or " + names[-1]
