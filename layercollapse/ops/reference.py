"""The ops in plain torch: slow, short, and the truth that every backend is compared with, bit for bit.

Everything works on raw bits, so that subnormals, -0 and the flush-denormal mode cannot change a result.
Arguments arrive validated (`layercollapse.ops`); only errors that depend on the data are raised here. What is
written in place is written in inference mode: outside, torch changes a tensor that was made in it, and then raises.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from layercollapse.ops.checks import nan_error, too_many_error

_INT_OF = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}

# The hash of sign_hashes_: its constant 2^64 / golden ratio, and the shifts and factors of its mix; the last shift has
# no factor.
PHI = 0x9E3779B97F4A7C15
MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


@torch.inference_mode()
def sign_histogram_(x: Tensor, channel_dim: int, upper: float | None, out: Tensor) -> None:
    """Add the signs of x to out.

    Args:
        x: any shape with C entries along ``channel_dim``; float64, float32, bfloat16 or float16.
        channel_dim: dimension of the channels; all others are samples.
        upper: also count ``x >= upper``, compared in float32 (float64 for a float64 x).
        out: int64 (C, 4): negative, zero, positive, nan; (C, 5) with ``upper``. Accumulated into.
    """
    rows = x.movedim(channel_dim, 0).reshape(x.shape[channel_dim], math.prod(_without(x.shape, channel_dim)))
    bits = rows.view(_INT_OF[x.dtype])  # (C, samples)
    nan = rows.isnan()
    zero = bits.bitwise_left_shift(1) == 0
    negative = (bits < 0) & ~zero & ~nan
    positive = (bits > 0) & ~nan
    columns = [negative, zero, positive, nan]
    if upper is not None:
        double = x.dtype == torch.float64
        bound = struct.unpack("<q", struct.pack("<d", upper))[0] if double else _float_bits(upper)
        columns.append(positive & (magnitude_keys(rows, double).view(rows.shape) >= bound))
    out += torch.stack([column.sum(1) for column in columns], dim=1)


def sign_hashes_(x: Tensor, channel_dim: int, out: Tensor) -> None:
    """Hash the signs of every row of x: which channels are positive.

        word_w = Σ_b 2^b · [x_(64w + b) > 0]                      64 channels each, b = 0 … 63; none beyond the last is
        hash   = Σ_w mix(mix(word_w) + (w + 1) · PHI) mod 2^64

    Args:
        x: any shape with C entries along ``channel_dim``; float64, float32, bfloat16 or float16.
        channel_dim: dimension of the channels; every index of the others is a row.
        out: int64 (rows,), zeros, in the row-major order of the other dimensions; receives the hashes' bits.
    """
    rows = x.movedim(channel_dim, -1).reshape(out.numel(), x.shape[channel_dim])
    on = (rows.view(_INT_OF[x.dtype]) > 0) & ~rows.isnan()
    for word, part in enumerate(on.split(64, dim=1) if on.shape[1] else ()):
        bits = torch.arange(part.shape[1], device=x.device)
        packed = part.long().bitwise_left_shift(bits).sum(1)  # bit 63 is the sign: sums wrap
        out += _mix(_mix(packed) + _signed((word + 1) * PHI))


def masked_topk_(weights: Sequence[Tensor], masks: Sequence[Tensor], k: Sequence[int], scope: str) -> Tensor:
    """Clear the k smallest magnitudes among the kept entries, in place, by a stable sort.

    Args:
        weights: float tensors of any shape and strides without overlap.
        masks: packed keep-bits, uint8 (ceil(numel / 8),) each.
        k: one number per tensor (``scope="layer"``), or one in all (``scope="global"``).
        scope: what is ranked together.

    Returns:
        Largest magnitude cleared, 0 where none was: float32 (float64 if a weight is), (len(k),).
    """
    keep = [unpack_mask(mask, weight.shape).flatten() for weight, mask in zip(weights, masks, strict=True)]
    members = range(len(weights))
    groups = [[member] for member in members] if scope == "layer" else [list(members)]
    for index, (group, count) in enumerate(zip(groups, k, strict=True)):
        kept = sum(int(keep[member].sum()) for member in group)
        if count > kept:
            raise too_many_error(index, scope, count, kept)
    for index, weight in enumerate(weights):
        if weight.isnan().any():
            raise nan_error(index)

    double = any(weight.dtype == torch.float64 for weight in weights)
    thresholds = weights[0].new_zeros(len(k), dtype=torch.float64 if double else torch.float32)
    with torch.inference_mode():
        for index, (group, count) in enumerate(zip(groups, k, strict=True)):
            bits = torch.cat([keep[member] for member in group])
            keys = torch.cat([magnitude_keys(weights[member], double) for member in group])
            candidates = bits.nonzero().squeeze(1)  # (kept,), in the order of ties
            cleared = candidates[keys[candidates].argsort(stable=True)[:count]]
            bits[cleared] = False
            if count:
                thresholds[index] = keys[cleared[-1]].to(_INT_OF[thresholds.dtype]).view(thresholds.dtype)
            for member, part in zip(group, bits.split([keep[member].numel() for member in group]), strict=True):
                weights[member].masked_fill_(~part.view(weights[member].shape), 0)
                # Padding bits stay as they were, like every bit that this call does not clear.
                masks[member].bitwise_and_(pack_mask(part) | ~pack_mask(torch.ones_like(part)))
    return thresholds


@torch.inference_mode()
def apply_mask_(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Set every entry without a keep-bit to +0, in place.

    Args:
        weights: float tensors of any shape and strides without overlap.
        masks: packed keep-bits, uint8 (ceil(numel / 8),) each.
    """
    for weight, mask in zip(weights, masks, strict=True):
        weight.masked_fill_(~unpack_mask(mask, weight.shape), 0)


def topk_count_(
    weights: Sequence[Tensor], masks: Sequence[Tensor], lo: int, hi: int, counts: Tensor, *, double: bool = False
) -> None:
    """Add to counts what the weights keep, by the bits of |w| in float32 (float64 if ``double``).

    Args:
        weights: float32, bfloat16 or float16 tensors of any shape and strides; also float64 if ``double``.
        masks: packed keep-bits, uint8 (ceil(numel / 8),) each.
        lo: first of the bits that are told apart.
        hi: one past the last.
        counts: int64 (3 + b,): above 0 for a NaN; entries kept; those below ``lo``; those in [lo, hi) by at most b bins
            of one width, the smallest power of two for which they are enough.
        double: whether the bits are those of float64.
    """
    bins = counts.numel() - 3
    shift = max(0, (hi - lo - 1).bit_length() - (bins - 1).bit_length())
    for weight, mask in zip(weights, masks, strict=True):
        kept = magnitude_keys(weight, double)[unpack_mask(mask, weight.shape).flatten()]
        inside = kept[(kept >= lo) & (kept < hi)] - lo
        counts[0] += weight.isnan().any()
        counts[1] += kept.numel()
        counts[2] += (kept < lo).sum()
        counts[3:] += torch.bincount(inside >> shift, minlength=bins)


def pack_mask(mask: Tensor) -> Tensor:
    """Pack booleans into bits, the first in the lowest bit.

    Args:
        mask: bool, any shape; read in row-major order.

    Returns:
        uint8, (ceil(numel / 8),); the padding bits of the last byte are 0.
    """
    flat = mask.reshape(-1)
    padding = -flat.numel() % 8
    octets = torch.nn.functional.pad(flat.to(torch.uint8), (0, padding)).view(-1, 8)
    shifts = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return octets.bitwise_left_shift(shifts).sum(1, dtype=torch.uint8)


def unpack_mask(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo `pack_mask`.

    Args:
        packed: uint8, (ceil(n / 8),) for the n entries of ``shape``.
        shape: shape of the result.

    Returns:
        bool, ``shape``, contiguous.
    """
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = packed.view(-1, 1).bitwise_right_shift(shifts).bitwise_and_(1).view(-1)  # (8 · bytes,)
    return bits[: math.prod(shape)].view(torch.bool).reshape(tuple(shape))


def magnitude_keys(weight: Tensor, double: bool) -> Tensor:
    """Return int64 (numel,) in logical order: the bits of |w| in float32 (float64 if ``double``), exact."""
    flat = weight.reshape(-1)
    if double:
        return flat.double().view(torch.int64) & 0x7FFF_FFFF_FFFF_FFFF
    # float16 and bfloat16 widen without rounding; a float32 is not converted, so no subnormal is flushed.
    return flat.float().view(torch.int32).long() & 0x7FFF_FFFF


def _float_bits(number: float) -> int:
    """Return the bits of the float32 next to a number above 0: in integers, as a cast may flush a subnormal to 0."""
    if number >= 2.0**128:
        return 0x7F800000
    binade = max(math.frexp(number)[1] - 24, -149)  # the number is close to an integer of up to 24 bits times 2^binade
    return round(math.ldexp(number, -binade)) + ((binade + 149) << 23)


def _mix(words: Tensor) -> Tensor:
    """Return the last steps of splitmix64, a bijection of 64 bits (Steele, Lea and Flood 2014; Stafford's 13th)."""
    for shift, factor in MIX:
        words = (words ^ words.bitwise_right_shift(shift).bitwise_and_((1 << (64 - shift)) - 1)) * _signed(factor)
    return words


def _signed(bits: int) -> int:
    """Return the int64 of these 64 bits (and of any above them)."""
    return (bits + 2**63) % 2**64 - 2**63


def _without(shape: Sequence[int], dim: int) -> list[int]:
    dim %= len(shape)
    return [size for index, size in enumerate(shape) if index != dim]
