"""What ranks share of `ops.masked_topk_` when each holds a part of the weights: counts, and the range they narrow."""

from __future__ import annotations

import struct
from typing import NamedTuple

import torch
from torch import Tensor

from layercollapse._util.tensors import describe
from layercollapse.errors import LayerCollapseError
from layercollapse.ops.checks import integer, too_many_error

TOPK_BINS = 2048
TOPK_COUNTS = 3 + TOPK_BINS
TOPK_END = 0x7F800001  # one past the bits of infinity
TOPK_END64 = 0x7FF0000000000001  # the same of float64


class TopkRange(NamedTuple):
    """Where the threshold of `ops.masked_topk_` lies.

    Attributes:
        lo: first of the keys that it may be: the bits of a magnitude as float32.
        hi: one past the last.
        ties: how many of the entries with keys in [lo, hi) are to be cleared.
        bin: place in the counts of the entries with these keys.
        double: whether the keys are those of float64.
    """

    lo: int
    hi: int
    ties: int
    bin: int
    double: bool = False

    @property
    def found(self) -> bool:
        """Whether ``lo`` is the threshold."""
        return self.hi - self.lo == 1

    @property
    def magnitude(self) -> float:
        """The threshold once it is found, as a number."""
        number, bits = ("<d", "<Q") if self.double else ("<f", "<I")
        return float(struct.unpack(number, struct.pack(bits, self.lo))[0])


def topk_end(double: bool = False) -> int:
    """One past the key of infinity: ``TOPK_END``, or ``TOPK_END64`` of float64."""
    return TOPK_END64 if double else TOPK_END


def check_range(lo: int, hi: int, double: bool = False) -> None:
    """Raise unless [lo, hi) is a range of keys."""
    end = topk_end(double)
    if not 0 <= lo < hi <= end:
        raise LayerCollapseError(f"lo, hi: expected 0 <= lo < hi <= {end:#x}, got {lo} and {hi}")


def topk_threshold(counts: Tensor, k: int, *, lo: int = 0, hi: int | None = None, double: bool = False) -> TopkRange:
    """Narrow the range of the k-th smallest magnitude by the counts of all ranks.

    Args:
        counts: int64 (2051,), the sum of what `ops.topk_count` gave with the same ``lo`` and ``hi``; waited for.
        k: how many to clear in all.
        lo: first key.
        hi: one past the last key; None for what is past infinity.
        double: whether the keys are those of float64.

    Returns:
        The bin that holds the threshold: the next ``lo`` and ``hi``, until it is ``found``, after three rounds at most,
        or six of ``double``.

    Raises:
        LayerCollapseError: a rank has a NaN, k is above what all keep, or the range does not hold the threshold.
    """
    lo, hi, k = integer("lo", lo), integer("hi", topk_end(double) if hi is None else hi), integer("k", k)
    check_range(lo, hi, double)
    if not isinstance(counts, Tensor) or counts.dtype != torch.int64 or tuple(counts.shape) != (TOPK_COUNTS,):
        raise LayerCollapseError(f"counts: expected an int64 tensor of shape ({TOPK_COUNTS},), got {describe(counts)}")
    if k < 0:
        raise LayerCollapseError(f"k: expected an int of at least 0, got {k}")
    nan, kept, below, *bins = counts.tolist()
    if k > kept:
        raise too_many_error(0, "global", k, kept)
    if nan:
        raise LayerCollapseError(
            f"counts: expected numbers in all weights, got NaN from {nan} ranks; nothing was changed"
        )
    if k == 0:
        return TopkRange(0, 1, 0, 0, double)
    rank = k - below
    for place, count in enumerate(bins):
        if 0 < rank <= count:
            shift = max(0, (hi - lo - 1).bit_length() - (TOPK_BINS - 1).bit_length())
            first = lo + (place << shift)
            return TopkRange(first, min(hi, first + (1 << shift)), rank, 3 + place, double)
        rank -= count
    raise LayerCollapseError(
        f"counts: expected the k-th smallest of k={k} in [lo, hi), got {below} below and {sum(bins)} inside"
    )
