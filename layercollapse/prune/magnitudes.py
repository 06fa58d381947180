"""Sums of magnitudes that are the same in every order, and so for any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from layercollapse._util.ranks import Ranks
from layercollapse.errors import LayerCollapseError
from layercollapse.prune.shards import Held, chunk_of


def magnitudes(held: Sequence[Held], ranks: Ranks) -> dict[str, float]:
    """Sum of |w| over the kept entries of each weight, of all ranks together.

    They are summed as 64-bit integers, multiples of about the largest times the number of entries times 2^-62.

    Args:
        held: the same weights on all ranks.
        ranks: that hold the parts.

    Raises:
        LayerCollapseError: on all ranks: an entry, kept or not, is NaN or infinite.
    """
    largest = torch.zeros(len(held), dtype=torch.float64, device=ranks.device)
    for at, one in enumerate(held):
        if one.weight.numel():
            low, high = torch.aminmax(one.weight)
            largest[at] = torch.maximum(-low, high)
    infinity = float("inf")
    tops = ranks.max_(largest.nan_to_num(nan=infinity, posinf=infinity)).tolist()
    bad = [one.name for one, top in zip(held, tops, strict=True) if top == infinity]
    if bad:
        raise LayerCollapseError(f"weights: expected finite numbers, got NaN or infinity in {', '.join(bad)}")
    bits = [_bits(top, math.prod(one.part.shape)) for one, top in zip(held, tops, strict=True)]
    sums = torch.zeros(len(held), dtype=torch.int64, device=ranks.device)
    for at, one in enumerate(held):
        if one.counts:
            sums[at] = _sum(one, bits[at])
    totals = ranks.sum_(sums).tolist()
    return {one.name: math.ldexp(total, -bit) for one, total, bit in zip(held, totals, bits, strict=True)}


def _bits(largest: float, numel: int) -> int:
    """By which power of two magnitudes up to the largest are multiplied to be summed as 64-bit integers."""
    return 62 - numel.bit_length() - math.frexp(largest)[1]


def _sum(held: Held, bits: int) -> Tensor:
    """The sum of the kept magnitudes times 2^bits, int64 ()."""
    kept, flat = held.kept().flatten(), held.weight.reshape(-1)
    half = bits // 2  # 2^bits may be no float64
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    step = chunk_of(flat.device)
    for part, keep in zip(flat.split(step), kept.split(step), strict=True):
        total += (part.abs().double().mul_(2.0**half).mul_(2.0 ** (bits - half)).mul_(keep)).long().sum()
    return total
