"""The part of masked_topk_ that Triton and CUDA share: scratch memory, and errors that the device found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from layercollapse._checks import nan_error, too_many_error
from layercollapse.kernels.launch import capturing, on_device_of
from layercollapse.kernels.topk_plan import BINS, FIELDS, SAMPLE, Plan, plan_for

KEPT_IN_GROUP, NAN = 5, 2  # columns of Scratch.state and Scratch.result


class Scratch(NamedTuple):
    """Memory on the device for one call, of plan.groups G and plan.segments S.

    Attributes:
        gate: int64 (1,), 0 until something forbids the apply pass.
        state: int64 (G, 8), from 0: range of keys (2), shift of its bins, done, threshold, entries kept.
        result: int64 (S, 8), from 0: entries kept, below the range, NaN, ties to clear, ties.
        thresholds: float32 (G,), from 0.
        bins: int32 (S, BINS).
        sums: int64 (G, BINS).
        sample: int32 (G, SAMPLE).
    """

    gate: Tensor
    state: Tensor
    result: Tensor
    thresholds: Tensor
    bins: Tensor
    sums: Tensor
    sample: Tensor


def masked_topk_with(
    launch: Callable[[Plan, Scratch], None],
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    k: Sequence[int],
    scope: str,
) -> Tensor:
    """Run all passes by ``launch``; wait for the device once, at the end, to raise errors.

    While a CUDA graph is captured nothing is awaited and nothing raised: where an error would be, the replay changes
    nothing and its thresholds are NaN.
    """
    with on_device_of(weights[0]):
        plan = plan_for(weights, masks, k, scope)
        if not plan.segments:
            for index, number in enumerate(k):
                if number:
                    raise too_many_error(index, scope, number, 0)
        scratch = _scratch(plan, weights[0].device)
        if plan.segments:
            launch(plan, scratch)
        if capturing(weights[0]):
            return scratch.thresholds.masked_fill_(scratch.gate != 0, torch.nan)
        if int(scratch.gate):
            raise _error(plan, scratch, k, scope)
    return scratch.thresholds


def _scratch(plan: Plan, device: torch.device) -> Scratch:
    sizes = [1, plan.groups * FIELDS, plan.segments * FIELDS]
    gate, state, result = torch.zeros(sum(sizes), dtype=torch.int64, device=device).split(sizes)
    sampled = plan.groups if plan.rounds else 0
    return Scratch(
        gate,
        state,
        result,
        torch.zeros(plan.groups, dtype=torch.float32, device=device),
        torch.empty(plan.segments * BINS, dtype=torch.int32, device=device),
        torch.empty(sampled * BINS, dtype=torch.int64, device=device),
        torch.empty(sampled * SAMPLE, dtype=torch.int32, device=device),
    )


def _error(plan: Plan, scratch: Scratch, k: Sequence[int], scope: str) -> Exception:
    """Return what closed the gate; nothing has changed."""
    kept = scratch.state.view(-1, FIELDS)[:, KEPT_IN_GROUP].tolist()
    for index, number in enumerate(k):
        if number > kept[index]:
            return too_many_error(index, scope, number, kept[index])
    nan = scratch.result.view(-1, FIELDS)[:, NAN].tolist()
    return nan_error(plan.tensor_of[nan.index(1)])
