"""Which part of a weight this rank holds, and the selection of the smallest magnitudes among the parts of all.

The masks are those of one process that holds whole tensors, bit for bit: the threshold of all parts comes from sums of
counts (`ops.topk_count`), and of the entries that equal it those go that are first in the row-major order of the whole
tensor, however it is cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from layercollapse import ops
from layercollapse._util.ranks import Ranks
from layercollapse._util.sharded import is_sharded
from layercollapse.errors import LayerCollapseError
from layercollapse.ops.reference import magnitude_keys

# Entries of which temporaries of 8 bytes are made at a time: what a CPU's cache holds (7 times faster than 2^22, with
# 16 M weights), and on a GPU few launches.
CHUNK, GPU_CHUNK = 2**17, 2**24


def chunk_of(device: torch.device) -> int:
    """How many entries of a tensor to take at a time."""
    return CHUNK if device.type == "cpu" else GPU_CHUNK


@dataclass(frozen=True)
class Part:
    """The part of a weight that this rank holds: a block of it, which may be empty, or all.

    Attributes:
        shape: of the whole weight.
        start: index of the block's first entry, by dimension.
        size: shape of the block.
    """

    shape: tuple[int, ...]
    start: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def whole(self) -> bool:
        """Whether it is all of the weight."""
        return self.size == self.shape

    @property
    def block(self) -> tuple[slice, ...]:
        """Where it lies in the whole tensor."""
        return tuple(slice(start, start + size) for start, size in zip(self.start, self.size, strict=True))

    def flat(self, places: Tensor) -> Tensor:
        """Row-major places in the block, int64 (n,), as places in the whole tensor: in the same order."""
        whole, step, inside = torch.zeros_like(places), 1, places
        for shape, start, size in zip(self.shape[::-1], self.start[::-1], self.size[::-1], strict=True):
            whole += (inside % max(size, 1) + start) * step
            inside, step = inside // max(size, 1), step * shape
        return whole


def part_of(name: str, weight: Tensor) -> Part:
    """The part of a weight that this rank holds.

    Raises:
        LayerCollapseError: the parts are sums, or not known to be blocks.
    """
    if not is_sharded(weight):
        return Part(tuple(weight.shape), (0,) * weight.ndim, tuple(weight.shape))
    mesh, placements = weight.device_mesh, tuple(weight.placements)
    local = tuple(weight.to_local().shape)
    part = _part(tuple(weight.shape), mesh, placements, local)
    if part is None:
        raise LayerCollapseError(
            f"weight {name!r}: expected one whose ranks hold a block each, got {tuple(weight.shape)} with the "
            f"placements {placements} on {mesh}"
        )
    return part


@lru_cache(maxsize=4096)
def _part(shape: tuple[int, ...], mesh: Any, placements: tuple, local: tuple[int, ...]) -> Part | None:
    at = mesh.get_coordinate()
    if at is None:
        return Part(shape, (0,) * len(shape), (0,) * len(shape))
    along = [torch.arange(size) for size in shape]
    for number, placement in enumerate(placements):
        if placement.is_replicate():
            continue
        dim, pieces, factor = getattr(placement, "dim", None), mesh.size(number), getattr(placement, "split_factor", 1)
        # Of pieces that another dimension of the mesh cuts first, and not evenly, torch has two notions.
        if not isinstance(dim, int) or (factor > 1 and shape[dim] % (factor * pieces)):
            return None
        along[dim] = torch.cat([along[dim][:0], *along[dim].chunk(pieces * factor)[at[number] :: pieces]])
    size = tuple(map(len, along))
    if any(len(x) and int(x[-1] - x[0]) != len(x) - 1 for x in along) or math.prod(local) != math.prod(size):
        return None
    if math.prod(size) and local != size:
        return None
    return Part(shape, tuple(int(x[0]) if len(x) else 0 for x in along), local)


@dataclass(frozen=True)
class Held:
    """What this rank holds of one weight.

    Attributes:
        name: of the weight.
        weight: the block, without its history; written to in place.
        mask: its packed keep-bits, uint8 (ceil(numel / 8),).
        part: which block it is.
        counts: whether this rank counts the entries, of all that hold these.
    """

    name: str
    weight: Tensor
    mask: Tensor
    part: Part
    counts: bool = True

    def here(self, lo: int, hi: int | None, double: bool) -> Tensor:
        """`ops.topk_count` of the block."""
        return ops.topk_count(self.weight, self.mask, lo=lo, hi=hi, double=double)

    def count(self, lo: int, hi: int | None, double: bool, device: torch.device) -> Tensor:
        """`ops.topk_count` of the entries that this rank counts."""
        counts = self.here(lo, hi, double).to(device)
        if not self.counts:
            counts[1:] = 0  # not a NaN
        return counts

    def kept(self) -> Tensor:
        """Where an entry is kept: bool, the shape of the block."""
        return ops.unpack_mask(self.mask, self.part.size)

    def equal(self, key: int, double: bool) -> Tensor:
        """The kept entries whose magnitude has a key: their row-major places in the block, int64 (n,)."""
        kept, found = self.kept().flatten(), []
        flat = self.weight.reshape(-1)
        step = chunk_of(flat.device)
        for start in range(0, len(flat), step):
            same = magnitude_keys(flat[start : start + step], double) == key
            found.append((same & kept[start : start + step]).nonzero().squeeze(1) + start)
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64, device=flat.device)


def counted(weight: Tensor, ranks: Ranks) -> bool:
    """Whether this rank counts what it holds of a weight: of the ranks that hold the same, one does."""
    if not is_sharded(weight):
        return ranks.first
    mesh, at = weight.device_mesh, weight.device_mesh.get_coordinate()
    # A mesh may be one of several side by side, each of which holds the whole.
    if at is None or ranks.lead not in mesh.mesh.flatten().tolist():
        return False
    placements = weight.placements
    return all(index == 0 for placement, index in zip(placements, at, strict=True) if placement.is_replicate())


@dataclass(frozen=True)
class Threshold:
    """What a group of weights loses: all kept below a key, and so many of those that equal it.

    Attributes:
        key: the threshold.
        ties: how many of the entries that equal it go, by weight.
        equal: how many there are, by weight.
        lost: how many entries go in all, by weight.
        double: whether the key is one of float64.
    """

    key: int
    ties: tuple[int, ...]
    equal: tuple[int, ...]
    lost: tuple[int, ...]
    double: bool


def thresholds(groups: Sequence[Sequence[Held]], counts: Sequence[int], ranks: Ranks) -> list[Threshold]:
    """The thresholds of groups of weights, each ranked together, with the entries of all ranks; nothing changes.

    Three sums over the ranks of 16,408 bytes for each group (six with float64), and one of 32 bytes for each weight.

    Args:
        groups: with the same weights in the same order on all ranks.
        counts: how many of each group go.
        ranks: that hold the parts.

    Raises:
        LayerCollapseError: on all ranks: a NaN, or a count above what is kept.
    """
    doubles = [any(held.weight.dtype == torch.float64 for held in group) for group in groups]
    found = [ops.TopkRange(0, ops.TOPK_END64 if double else ops.TOPK_END, 0, 0, double) for double in doubles]
    open_ = list(range(len(groups)))
    while open_:
        table = torch.zeros(len(open_), ops.TOPK_COUNTS, dtype=torch.int64, device=ranks.device)
        for row, at in zip(table, open_, strict=True):
            for held in groups[at]:
                row.add_(held.count(found[at].lo, found[at].hi, doubles[at], ranks.device))
        for row, at in zip(ranks.sum_(table).cpu(), open_, strict=True):
            before = found[at]
            found[at] = ops.topk_threshold(row, counts[at], lo=before.lo, hi=before.hi, double=doubles[at])
        open_ = [at for at in open_ if not found[at].found]
    flat = [(held, at) for at, group in enumerate(groups) for held in group]
    table = torch.zeros(len(flat), 2, dtype=torch.int64, device=ranks.device)
    for row, (held, at) in zip(table, flat, strict=True):
        key = found[at].lo
        row.add_(held.count(key, key + 1, doubles[at], ranks.device)[2:4])
    sums = iter(ranks.sum_(table).tolist())
    result = []
    for group, range_ in zip(groups, found, strict=True):
        left, ties, lost = range_.ties, list[int](), list[int]()
        own = [next(sums) for _ in group]
        for below, equal in own:
            ties.append(min(left, equal))
            lost.append(below + ties[-1])
            left -= ties[-1]
        equals = tuple(equal for _, equal in own)
        result.append(Threshold(range_.lo, tuple(ties), equals, tuple(lost), range_.double))
    return result


def clear(groups: Sequence[Sequence[Held]], counts: Sequence[int], ranks: Ranks) -> None:
    """Do as `ops.masked_topk_` with whole tensors: clear the smallest of each group, and zero what has no keep-bit.

    Raises:
        LayerCollapseError: as for `thresholds`. Nothing has changed, on any rank.
    """
    every = thresholds(groups, counts, ranks)
    pairs = [
        (held, threshold, ties, equal)
        for group, threshold in zip(groups, every, strict=True)
        for held, ties, equal in zip(group, threshold.ties, threshold.equal, strict=True)
    ]
    split = [at for at, (_, _, ties, equal) in enumerate(pairs) if 0 < ties < equal]
    own = dict(zip(split, first_ties([pairs[at][:3] for at in split], ranks), strict=True))
    for at, (held, threshold, ties, _) in enumerate(pairs):
        if ties and at not in own:  # all that equal it go
            own[at] = int(held.here(threshold.key, threshold.key + 1, threshold.double)[3])
        ops.topk_apply(held.weight, held.mask, threshold.key, own.get(at, 0), threshold.double)


def first_ties(pairs: Sequence[tuple[Held, Threshold, int]], ranks: Ranks) -> list[int]:
    """How many of the entries that equal a threshold go here, where the given number of all goes, the first ones.

    Where they end in the whole tensor is found as the threshold is: the ranks add up how many lie in each of 2,048
    ranges, and cut the one that holds the end again. The order in a block is that of the whole tensor, so they are the
    first ones of the block as well.
    """
    places: dict[int, Tensor] = {}
    ranges: dict[int, tuple[int, int, int]] = {}  # first place, one past the last, how many go
    for at, (held, threshold, ties) in enumerate(pairs):
        places[at] = held.part.flat(held.equal(threshold.key, threshold.double))
        ranges[at] = (0, math.prod(held.part.shape), ties)
    ends = dict.fromkeys(places, 0)
    while ranges:
        widths = [-(-(end - first) // ops.TOPK_BINS) for first, end, _ in ranges.values()]
        table = torch.zeros(len(ranges), ops.TOPK_BINS, dtype=torch.int64, device=ranks.device)
        for row, width, (at, (first, end, _)) in zip(table, widths, ranges.items(), strict=True):
            if pairs[at][0].counts:
                inside = places[at][(places[at] >= first) & (places[at] < end)] - first
                row.add_(torch.bincount(inside // width, minlength=ops.TOPK_BINS).to(row.device))
        sums = ranks.sum_(table).cpu().cumsum(1)
        narrowed = {}
        for row, width, (at, (first, end, wanted)) in zip(sums, widths, ranges.items(), strict=True):
            number = int((row < wanted).sum())
            start, before = first + number * width, int(row[number - 1]) if number else 0
            if int(row[number]) == wanted:
                ends[at] = start + width
            else:
                assert width > 1, "an entry is counted twice"
                narrowed[at] = (start, min(end, start + width), wanted - before)
        ranges = narrowed
    return [int((places[at] < ends[at]).sum()) for at in range(len(pairs))]


def gathered(held: Held, ranks: Ranks) -> Tensor:
    """The packed mask of the whole weight, uint8 (ceil(numel / 8),) on the CPU; of as many bytes the ranks add up."""
    full = torch.zeros(held.part.shape, dtype=torch.bool, device=held.weight.device)
    if held.counts:
        full[held.part.block] = held.kept()
    return ranks.sum_(ops.pack_mask(full).to(ranks.device)).cpu()  # no bit is set on two ranks
