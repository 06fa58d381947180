"""The ops of the method, and their masks: `sign_histogram`, `masked_topk_`, `apply_mask_`, `pack_mask`, `unpack_mask`.

`topk_count`, `topk_threshold` and `topk_apply` are the stages of `masked_topk_`, for weights that many processes hold.

They work on plain tensors, without the rest of the package. Each op is registered with ``torch.library``
(`ops.library`), so ``torch.compile`` may trace it; the implementation is chosen when it runs (`ops.registry`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from layercollapse._util.tensors import describe
from layercollapse.errors import LayerCollapseError
from layercollapse.ops import builtin, checks, library, reference, repeats  # noqa: F401 - two register what there is
from layercollapse.ops.patterns import SignPatterns
from layercollapse.ops.registry import BackendStatus, backends, last_backend, use_backend
from layercollapse.ops.topk_stages import (
    TOPK_BINS,
    TOPK_COUNTS,
    TOPK_END,
    TOPK_END64,
    TopkRange,
    check_range,
    topk_end,
    topk_threshold,
)

__all__ = [
    "TOPK_BINS",
    "TOPK_COUNTS",
    "TOPK_END",
    "TOPK_END64",
    "BackendStatus",
    "SignPatterns",
    "TopkRange",
    "apply_mask_",
    "backends",
    "last_backend",
    "masked_topk_",
    "pack_mask",
    "sign_hashes",
    "sign_histogram",
    "sign_patterns",
    "topk_apply",
    "topk_count",
    "topk_threshold",
    "unpack_mask",
    "use_backend",
]


@overload
def sign_histogram(
    x: Tensor, *, channel_dim: int = 1, upper: float | None = None, out: Tensor | None = None
) -> Tensor: ...
@overload
def sign_histogram(
    x: Sequence[Tensor],
    *,
    channel_dim: int | Sequence[int] = 1,
    upper: float | Sequence[float | None] | None = None,
    out: Sequence[Tensor] | None = None,
) -> list[Tensor]: ...
def sign_histogram(
    x: Tensor | Sequence[Tensor],
    *,
    channel_dim: int | Sequence[int] = 1,
    upper: float | Sequence[float | None] | None = None,
    out: Tensor | Sequence[Tensor] | None = None,
) -> Tensor | list[Tensor]:
    """Count the signs in every channel, exactly, reading x once.

    >>> sign_histogram(torch.tensor([[-1.0, 0.0], [2.0, float("nan")]]))
    tensor([[1, 0, 1, 0],
            [0, 1, 0, 1]])

    A list is counted as a whole: on a GPU in one launch for all tensors of one width that are read in one way, on the
    CPU in one loop over the threads. On an error no count has changed.

    >>> sign_histogram([torch.tensor([[-1.0], [2.0]]), torch.tensor([3.0, 0.0])], channel_dim=[1, 0])
    [tensor([[1, 0, 1, 0]]), tensor([[0, 0, 1, 0],
            [0, 1, 0, 0]])]

    Args:
        x: float32, bfloat16, float16 or float64 (which runs on the reference, with the whole list that it is in); any
            shape and strides, with C entries along ``channel_dim``. All other dimensions are samples. Or a list of such
            tensors, of any types and shapes, on one device.
        channel_dim: 1 for (N, C, *spatial), -1 for (N, *, C); of a list, one for all or one for each.
        upper: also count ``x >= upper``, for rectifiers with an upper bend. Above 0; compared in float32. Of a list,
            one for all or one or None for each.
        out: int64 (C, 4), or (C, 5) with ``upper``: counts to add to. Of a list, one for each, without overlap.

    Returns:
        ``out``, or a new tensor like it: the numbers of negative, zero (-0 too), positive and NaN entries, and
        with ``upper`` those at or above it (which are counted as positive too). Of a list, a list of these.
    """
    if not isinstance(x, Tensor):
        return _sign_histograms(x, channel_dim, upper, out)
    repeatable = isinstance(out, Tensor) and not torch.compiler.is_compiling()
    if repeatable and repeats.count([x], [channel_dim], [upper], [out]):  # type: ignore[list-item]
        return out  # type: ignore[return-value]
    checks.check_activation(x, channel_dim, upper)  # type: ignore[arg-type]
    if out is None:
        size = (x.shape[channel_dim], 4 if upper is None else 5)  # type: ignore[index]
        out = torch.zeros(size, dtype=torch.int64, device=x.device)
    elif not isinstance(out, Tensor):
        raise LayerCollapseError(f"out: expected a tensor, got {type(out).__name__}")
    else:
        checks.check_in_place("out", out)
    library.sign_histogram_(x.detach(), channel_dim, upper, out)  # type: ignore[arg-type]
    if repeatable:
        repeats.keep_count([x], [channel_dim], [upper], [out])  # type: ignore[list-item]
    return out


def _sign_histograms(xs: Any, channel_dim: Any, upper: Any, out: Any) -> list[Tensor]:
    if not isinstance(xs, (list, tuple)):
        raise LayerCollapseError(f"x: expected a tensor or a list of tensors, got {type(xs).__name__}")
    dims = list(channel_dim) if isinstance(channel_dim, (list, tuple)) else [channel_dim] * len(xs)
    uppers = list(upper) if isinstance(upper, (list, tuple)) else [upper] * len(xs)
    checks.check_lengths(len(xs), channel_dim=dims, upper=uppers)
    repeatable = isinstance(out, (list, tuple)) and len(out) == len(xs) > 0 and not torch.compiler.is_compiling()
    if repeatable and repeats.count(xs, dims, uppers, out):
        return list(out)
    for index, (x, dim, bound) in enumerate(zip(xs, dims, uppers, strict=True)):
        checks.check_activation(x, dim, bound, f"[{index}]")
    if out is None:
        sizes = [(x.shape[dim], 4 if bound is None else 5) for x, dim, bound in zip(xs, dims, uppers, strict=True)]
        outs = [torch.zeros(size, dtype=torch.int64, device=x.device) for x, size in zip(xs, sizes, strict=True)]
    else:
        if not isinstance(out, (list, tuple)) or not all(isinstance(entry, Tensor) for entry in out):
            raise LayerCollapseError(f"out: expected a list of tensors, got {type(out).__name__}")
        outs = list(out)
        for index, entry in enumerate(outs):
            checks.check_in_place(f"out[{index}]", entry)
    checks.check_lengths(len(xs), out=outs)
    checks.check_one_device(x=xs, out=outs)
    if xs:  # torch's dispatcher needs a tensor to find a kernel
        bounds = [0.0 if bound is None else bound for bound in uppers]
        torch.ops.layercollapse.sign_histograms_([x.detach() for x in xs], dims, bounds, outs)
    if repeatable:
        repeats.keep_count(xs, dims, uppers, outs)
    return outs


def sign_hashes(x: Tensor, *, channel_dim: int = 1) -> Tensor:
    """Hash the signs of every row: 64 bits that say which of the channels are positive there.

    >>> a, b, c = sign_hashes(torch.tensor([[1.0, -1.0], [0.5, float("nan")], [-1.0, 2.0]])).tolist()
    >>> a == b, b == c
    (True, False)

    A row is what x holds along ``channel_dim``: a sample's, and of (N, C, *spatial) that of one position. Its signs are
    packed to words of 64 bits, 1 where ``x > 0`` (so zeros and NaN count as not positive), and

        hash = Σ_w mix(mix(word_w) + (w + 1) · 0x9E3779B97F4A7C15) mod 2^64

    with the mix of splitmix64: z ^= z >> 30; z *= 0xBF58476D1CE4E5B9; z ^= z >> 27; z *= 0x94D049BB133111EB;
    z ^= z >> 31. It is equal on all backends and machines. Up to 64 channels no two patterns have one hash; beyond,
    two do with a probability of about 2^-64, some of n with n² / 2^65 (3e-8 of a million).

    Args:
        x: float32, bfloat16, float16 or float64 (which runs on the reference); any shape and strides, with C
            entries along ``channel_dim``.
        channel_dim: 1 for (N, C, *spatial), -1 for (N, *, C).

    Returns:
        int64, the shape of x without ``channel_dim``: the bits of the hashes.
    """
    checks.check_activation(x, channel_dim, None)
    return torch.ops.layercollapse.sign_hashes(x.detach(), channel_dim)


def sign_patterns(x: Tensor, *, channel_dim: int = 1, state: SignPatterns | None = None) -> SignPatterns:
    """Count which joint patterns of signs the rows have: how many linear pieces of a rectifier the data use.

    >>> patterns = sign_patterns(torch.tensor([[1.0, -1.0], [2.0, -3.0], [1.0, 1.0], [0.0, -1.0]]))
    >>> patterns.distinct, patterns.counts.sort().values.tolist(), patterns.entropy, patterns.exact
    (3, [1, 1, 2], 1.5, True)

    x is read once, to hash its rows (see `sign_hashes`, which says what a row and its signs are); counting them
    sorts 8 bytes a row and waits for the device. Everything is exact up to 65,536 patterns, or as many as the
    ``state`` that counting began with has room for (``SignPatterns.empty(C, capacity=...)``). Neither the order of rows
    nor how they are cut into calls makes a difference.

    Args:
        x: as `sign_hashes` takes it.
        channel_dim: 1 for (N, C, *spatial), -1 for (N, *, C).
        state: what was counted before, of as many channels on the same device; it does not change.

    Returns:
        What was counted, those of ``state`` included: see `SignPatterns` for the number of patterns, their entropy and
        errors, merging and saving.
    """
    hashes = sign_hashes(x, channel_dim=channel_dim)
    channels = x.shape[channel_dim]
    if state is None:
        state = SignPatterns.empty(channels, device=x.device)
    elif not isinstance(state, SignPatterns):
        raise LayerCollapseError(f"state: expected a SignPatterns or None, got {type(state).__name__}")
    elif (state.channels, state.hashes.device) != (channels, x.device):
        raise LayerCollapseError(
            f"state: expected one of {channels} channels on {x.device}, got one of {state.channels} on "
            f"{state.hashes.device}"
        )
    return state.add(hashes)


def masked_topk_(
    weights: Tensor | Sequence[Tensor],
    masks: Tensor | Sequence[Tensor],
    k: int | Sequence[int],
    *,
    scope: Literal["layer", "global"] = "layer",
) -> Tensor:
    """Clear the k smallest magnitudes among the entries still kept, in place.

    >>> weight, mask = torch.tensor([3.0, -1.0, 0.5, -2.0]), pack_mask(torch.tensor([True, True, False, True]))
    >>> masked_topk_(weight, mask, 1)
    tensor([1.])
    >>> weight, unpack_mask(mask, (4,))
    (tensor([ 3.,  0.,  0., -2.]), tensor([ True, False, False,  True]))

    Exactly k entries lose their keep-bit: those of smallest ``|w|``, and of equal ones (-0 equals 0) those of
    the smaller row-major index, in the earlier tensor. Then every entry without a keep-bit, also one that had
    none before, is set to +0 (`apply_mask_` does that alone). On an error nothing has changed.

    Args:
        weights: tensor or list of tensors, float32, bfloat16, float16 or float64 (which runs on the
            reference), on one device, possibly of different types. Any strides without overlap, and no two in
            overlapping memory. Gradients are not tracked.
        masks: packed keep-bits of each (see `pack_mask`); padding bits are neither read nor changed.
        k: how many to clear: of each tensor if one number, or one for each (``scope="layer"``); or one number
            for all tensors together (``scope="global"``).
        scope: whether each tensor is ranked by itself, or all are ranked together.

    Returns:
        The largest magnitude cleared (0 if none was), exact: float32 (float64 if a weight is), of shape
        (number of tensors,) for "layer" and (1,) for "global".

    Raises:
        LayerCollapseError: a NaN in a weight (kept or not), k above the number of entries kept, a mask that
            does not fit, or memory given twice.
    """
    weights = _tensors("weights", weights)
    masks = _tensors("masks", masks)
    numbers = _numbers(k)
    if scope == "layer" and not isinstance(k, (list, tuple)):
        numbers = numbers * len(weights)
    if not weights:  # torch's dispatcher needs a tensor to find a kernel
        checks.check_masked_topk(weights, masks, numbers, scope)
        if sum(numbers):
            raise checks.too_many_error(0, scope, sum(numbers), 0)
        return torch.zeros(len(numbers), dtype=torch.float32)
    if not isinstance(scope, str):  # torch's dispatcher would say so, in its own words
        raise LayerCollapseError(f"scope: expected 'layer' or 'global', got {scope!r}")
    compiling, op = torch.compiler.is_compiling(), f"masked_topk_ {scope}"
    repeat = None if compiling else repeats.find(op, weights, masks)
    if repeat is not None:
        checks.check_counts(len(weights), numbers, scope)
        return repeat.run(numbers, written=(*weights, *masks))
    thresholds = torch.ops.layercollapse.masked_topk_(_in_place(weights, masks), masks, numbers, scope)
    if not compiling:
        repeats.keep(op, weights, masks, scope)
    return thresholds


def apply_mask_(weights: Tensor | Sequence[Tensor], masks: Tensor | Sequence[Tensor]) -> None:
    """Set every entry without a keep-bit to zero, in place: what an optimizer's step undid, done again.

    >>> weight = torch.tensor([3.0, -1.0, float("nan"), -2.0])
    >>> apply_mask_(weight, pack_mask(torch.tensor([True, True, False, False])))
    >>> weight
    tensor([ 3., -1.,  0.,  0.])

    Each of them becomes +0, also a -0, an infinity or a NaN; every other entry stays as it is, a NaN too. So no data
    are an error, and nothing waits for the device. Weights and masks are read once, only what changes is written,
    and all tensors go in one launch.

    Args:
        weights: tensor or list of tensors, float32, bfloat16, float16 or float64 (which runs on the
            reference), on one device, possibly of different types. Any strides without overlap, and no two in
            overlapping memory. Gradients are not tracked.
        masks: packed keep-bits of each (see `pack_mask`), only read; padding bits are not looked at.

    Raises:
        LayerCollapseError: a mask that does not fit, or memory given twice; nothing has changed.
    """
    weights = _tensors("weights", weights)
    masks = _tensors("masks", masks)
    if not weights:  # torch's dispatcher needs a tensor to find a kernel
        checks.check_masked(weights, masks)
        return
    compiling = torch.compiler.is_compiling()
    repeat = None if compiling else repeats.find("apply_mask_", weights, masks)
    if repeat is not None:
        repeat.run(written=weights)
        return
    torch.ops.layercollapse.apply_mask_(_in_place(weights, masks), masks)
    if not compiling:
        repeats.keep("apply_mask_", weights, masks)


def topk_count(
    weights: Tensor | Sequence[Tensor],
    masks: Tensor | Sequence[Tensor],
    *,
    lo: int = 0,
    hi: int | None = None,
    device: torch.device | str | None = None,
    double: bool = False,
) -> Tensor:
    """Count the magnitudes that this rank keeps: the first stage of `masked_topk_` over all ranks' weights.

    >>> weight, mask = torch.tensor([3.0, -1.0, 0.5, -2.0]), pack_mask(torch.tensor([True, True, False, True]))
    >>> counts = topk_count(weight, mask)
    >>> counts[:3].tolist(), counts[3:].sum().item()
    ([0, 3, 0], 3)
    >>> topk_threshold(counts, 1).found
    False

    Ranks add up their counts, and each narrows the range by `topk_threshold`, until it is one magnitude. Then they
    gather how many entries of it each has, and `topk_apply` clears what goes.

    Args:
        weights: tensor or list of tensors, float32, bfloat16 or float16, and float64 if ``double``; any strides.
        masks: packed keep-bits of each.
        lo: first of the keys that are told apart: the bits of a magnitude as float32, or float64 if ``double``.
        hi: one past the last; None for what is past infinity, ``TOPK_END`` or ``TOPK_END64``.
        device: where the counts go; without one, to the weights' device. A rank without weights names it, as ranks add
            up tensors of one kind of device; its counts are on the CPU otherwise.
        double: whether any rank has a float64 weight in what is ranked together; runs on the reference.

    Returns:
        int64 (``TOPK_COUNTS``,) = (3 + 2048,): 1 if a weight holds a NaN; entries kept; those of a key below ``lo``;
        those of keys in [lo, hi), by at most ``TOPK_BINS`` bins of one width, the smallest power of two that is enough.

    Raises:
        LayerCollapseError: a mask that does not fit, a float64 weight without ``double``, or no range.
    """
    weights, masks = _tensors("weights", weights), _tensors("masks", masks)
    lo, hi = checks.integer("lo", lo), checks.integer("hi", topk_end(double) if hi is None else hi)
    if not weights:
        checks.check_masked(weights, masks)
        check_range(lo, hi, double)
        return torch.zeros(TOPK_COUNTS, dtype=torch.int64, device=device)
    counts = torch.ops.layercollapse.topk_count([weight.detach() for weight in weights], masks, lo, hi, double)
    return counts if device is None else counts.to(device)


def topk_apply(
    weights: Tensor | Sequence[Tensor],
    masks: Tensor | Sequence[Tensor],
    threshold: int,
    ties: int,
    double: bool = False,
) -> None:
    """Clear what lies below a threshold, in place: the last stage of `masked_topk_` over all ranks' weights.

    The kept entries of a magnitude below the threshold lose their keep-bit, and of those equal to it the first ``ties``
    in row-major order, earlier tensors first. Then every entry without one is set to +0. On an error nothing has
    changed.

    Args:
        weights: tensor or list of tensors, as for `masked_topk_`.
        masks: packed keep-bits of each.
        threshold: the key found (`TopkRange.lo`).
        ties: how many of its entries go here: of those in all, what ranks before this one do not have.
        double: whether the threshold is a key of float64.

    Raises:
        LayerCollapseError: a NaN in a weight, or more ties than there are entries equal to the threshold.
    """
    threshold, ties = checks.integer("threshold", threshold), checks.integer("ties", ties)
    if not 0 <= threshold < topk_end(double):
        raise LayerCollapseError(f"threshold: expected a key from 0 to below {topk_end(double):#x}, got {threshold}")
    counts = topk_count(weights, masks, lo=threshold, hi=threshold + 1, double=double)
    nan, _, below, equal = counts[:4].tolist()
    if nan:
        raise LayerCollapseError("weights: expected numbers, got NaN; nothing was changed")
    if not 0 <= ties <= equal:
        raise LayerCollapseError(f"ties: expected 0 to the {equal} entries that equal the threshold, got {ties}")
    masked_topk_(weights, masks, below + ties, scope="global")


def pack_mask(mask: Tensor) -> Tensor:
    """Pack booleans into bits, the first in the lowest bit of the first byte.

    >>> pack_mask(torch.tensor([[True, False], [True, True]]))
    tensor([13], dtype=torch.uint8)

    Args:
        mask: bool, any shape and strides; read in row-major order.

    Returns:
        uint8, (ceil(numel / 8),); the padding bits of the last byte are 0.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or not checks.dense(mask):
        raise LayerCollapseError(f"mask: expected a dense bool tensor, got {describe(mask)}")
    return reference.pack_mask(mask)


def unpack_mask(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo `pack_mask`.

    >>> unpack_mask(torch.tensor([13], dtype=torch.uint8), (2, 2))
    tensor([[ True, False],
            [ True,  True]])

    Args:
        packed: uint8, (ceil(n / 8),) for the n entries of ``shape``.
        shape: shape of the result.

    Returns:
        bool, ``shape``, contiguous.
    """
    checks.check_packed(packed, shape)
    return reference.unpack_mask(packed, shape)


def _tensors(name: str, value: Tensor | Sequence[Tensor]) -> list[Tensor]:
    if isinstance(value, Tensor):
        if value.is_nested:  # torch's dispatcher would say so, in its own words
            raise LayerCollapseError(f"{name}: expected a dense tensor, got {describe(value)}")
        return [value]
    if not isinstance(value, (list, tuple)) or not all(issubclass(kind, Tensor) for kind in set(map(type, value))):
        raise LayerCollapseError(f"{name}: expected a tensor or a list of tensors, got {type(value).__name__}")
    return list(value)


def _in_place(weights: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
    """Return the weights without their history."""
    for name, tensors in (("weights", weights), ("masks", masks)):
        for index, tensor in enumerate(tensors):
            checks.check_in_place(f"{name}[{index}]", tensor)
    return [weight.detach() if weight.requires_grad else weight for weight in weights]


def _numbers(k: int | Sequence[int]) -> list[int]:
    entries = k if isinstance(k, (list, tuple)) else [k]
    if {*map(type, entries)} == {int} and min(entries) >= -(2**63) and max(entries) < 2**63:
        return list(entries)  # for 160 of them 11 us, where one by one they take 36
    return [checks.integer("k", entry) for entry in entries]
