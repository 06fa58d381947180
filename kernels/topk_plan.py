"""The tables of masked_topk_ on a GPU: many tensors as one, cut into segments in row-major order.

A segment is a range of one tensor that one program reads from front to back. It has a row of counters of its own, so
ties are dealt out by a prefix over segments and never by order of arrival. All tables are int64, in one buffer:

    segments (S, 8)  addresses of the values and of the mask byte, first entry, entries, dims, kind, infinity, group
    groups   (G, 8)  k, first segment, segments, slots, ranks of the sample that bracket k (2), end of the keys, kind
    dims     (D, 2)  size and stride of each dimension of the tensors that are not plain arrays
    ids      (S,)    the segments by class: those that one launch reads in the same way
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from layercollapse.errors import LayerCollapseError
from layercollapse.kernels.bits import FLOAT_TYPES, VECTOR, Dim, coalesce
from layercollapse.kernels.launch import capturing, program_count

FIELDS = 8
SAMPLE = 16384  # entries drawn from each group
BINS = 2048  # counters of a segment
UNIT = 8192  # entries that the length of a segment is a multiple of
SHORTEST = 32768  # entries of a segment below which its counters would cost more than 1 part in 16 of the traffic
CACHED = 16  # plans kept

# How a value becomes a key. NARROW keeps 15 bits; COMMON_* are magnitudes as a float32, where types meet in one group.
WIDE, NARROW, COMMON_BFLOAT16, COMMON_FLOAT16 = range(4)


@dataclass(frozen=True)
class Plan:
    """What the kernels need besides scratch memory.

    Attributes:
        table: int64, the four tables one after the other, on the device of the weights.
        segments: S.
        groups: G.
        dims: D.
        classes: (kind, strided, first of its ids, number of them) of each launch of a pass.
        most_dims: of any tensor; 0 if all are plain arrays.
        rounds: counting passes after which every threshold is proven, whatever the data.
        tensor_of: tensor of each segment.
    """

    table: Tensor
    segments: int
    groups: int
    dims: int
    classes: tuple[tuple[int, bool, int, int], ...]
    most_dims: int
    rounds: int
    tensor_of: tuple[int, ...]

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """Segments, groups, dims and ids, flat."""
        return self.table.split([self.segments * FIELDS, self.groups * FIELDS, self.dims * 2, self.segments])


_plans: OrderedDict[tuple[object, ...], Plan] = OrderedDict()
_captured: list[Plan] = []  # graphs read their tables whenever they are replayed: these are never freed


def plan_for(weights: Sequence[Tensor], masks: Sequence[Tensor], k: Sequence[int], scope: str) -> Plan:
    """Return the plan for these tensors and numbers, kept from an earlier call if there was one."""
    key = (
        scope,
        tuple(k),
        weights[0].device,
        *((w.data_ptr(), m.data_ptr(), w.dtype, w.shape, w.stride()) for w, m in zip(weights, masks, strict=True)),
    )
    plan = _plans.pop(key, None)
    if capturing(weights[0]):
        if plan is None:
            raise LayerCollapseError(
                "masked_topk_: expected a call with these tensors, k and scope before a CUDA graph captures one, "
                "got none: nothing may be copied to the device while capturing"
            )
        _captured.append(plan)
    elif plan is None:
        plan = _build(weights, masks, k, scope)
    _plans[key] = plan
    while len(_plans) > CACHED:
        _plans.popitem(last=False)
    return plan


def _build(weights: Sequence[Tensor], masks: Sequence[Tensor], k: Sequence[int], scope: str) -> Plan:
    total = sum(weight.numel() for weight in weights)
    length = max(SHORTEST, math.ceil(total / (2 * program_count(weights[0])) / UNIT) * UNIT)
    mixed = scope == "global" and len({weight.dtype for weight in weights}) > 1
    segments: list[list[int]] = []
    classes: list[tuple[int, bool]] = []
    tensor_of: list[int] = []
    dims: list[Dim] = []
    for index, (weight, mask) in enumerate(zip(weights, masks, strict=True)):
        group = index if scope == "layer" else 0
        kind = _kind(weight.dtype, mixed)
        infinity = FLOAT_TYPES[weight.dtype].infinity if kind == NARROW else 0x7F800000
        own = coalesce(map(Dim, weight.shape, weight.stride())) or [Dim(1, 1)]
        plain = len(own) == 1 and own[0].stride == 1 and weight.data_ptr() % VECTOR == 0
        # Vectors of 8 entries, one byte of the mask each; what is left, and all of other tensors, goes entry by entry.
        whole = weight.numel() // 8 * 8 if plain else 0
        pieces = [(begin, min(length, whole - begin), False) for begin in range(0, whole, length)]
        pieces += [(b, min(length, weight.numel() - b), True) for b in range(whole, weight.numel(), length)]
        for begin, count, strided in pieces:
            shift = 0 if strided else begin * weight.element_size()
            address, byte = weight.data_ptr() + shift, mask.data_ptr() + begin // 8
            place = len(dims) << 8 | len(own) if strided else 0
            segments.append([address, byte, begin, count, place, kind, infinity, group])
            classes.append((kind, strided))
            tensor_of.append(index)
        dims += own
    groups, exhaustive = _groups(segments, k, weights, mixed)
    order = sorted(range(len(segments)), key=lambda s: classes[s])  # stable
    launches: list[tuple[int, bool, int, int]] = []
    for (kind, strided), members in itertools.groupby(order, key=lambda s: classes[s]):
        launches.append((kind, strided, sum(launch[3] for launch in launches), len(list(members))))
    wide = mixed or any(weight.dtype == torch.float32 for weight in weights)
    flat = [np.asarray(part, np.int64).ravel() for part in (segments, groups, dims, order)]
    table = torch.from_numpy(np.concatenate(flat))
    if weights[0].is_cuda:
        table = table.pin_memory().to(weights[0].device, non_blocking=True)
    return Plan(
        table=table,
        segments=len(segments),
        groups=len(groups),
        dims=len(dims),
        classes=tuple(launches),
        most_dims=max((row[4] & 0xFF for row in segments), default=0),
        # 11 bits a pass: a range of 31 bits (15) is down to one key after three (two); one more if the bracket missed.
        rounds=0 if not any(k) else 1 if exhaustive else 4 if wide else 3,
        tensor_of=tuple(tensor_of),
    )


def _kind(dtype: torch.dtype, mixed: bool) -> int:
    if dtype == torch.float32:
        return WIDE
    if not mixed:
        return NARROW
    return COMMON_BFLOAT16 if dtype == torch.bfloat16 else COMMON_FLOAT16


def _groups(
    segments: Sequence[Sequence[int]], k: Sequence[int], weights: Sequence[Tensor], mixed: bool
) -> tuple[list[list[int]], bool]:
    """Return the rows of the groups, and whether every sample that matters holds its whole group."""
    rows, exhaustive, first = [], True, 0
    for group, number in enumerate(k):
        last = first
        while last < len(segments) and segments[last][7] == group:
            last += 1
        longest = max((segment[3] for segment in segments[first:last]), default=1)
        slots = (last - first) * longest  # places to draw from; those past the end of a shorter segment are dropped
        low, high = number - 1, number - 1
        if slots > SAMPLE:
            exhaustive &= number == 0
            share = min(1.0, number / slots)
            margin = 4 * math.sqrt(SAMPLE * share * (1 - share)) + 2  # missed once in 15,000 draws
            low, high = math.floor(SAMPLE * share - margin), math.ceil(SAMPLE * share + margin)
            low = low if low > 0 else -1  # entries that were not drawn may lie below all that were
        dtype = torch.float32 if mixed else weights[group].dtype
        end = FLOAT_TYPES[dtype].infinity + 1
        rows.append([number, first, last - first, longest, low, high, end, _kind(dtype, True)])
        first = last
    return rows, exhaustive
