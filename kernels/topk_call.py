"""The part of masked_topk_ that Triton and CUDA share: memory for a call, and errors that the device found."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from layercollapse.kernels.launch import capturing, on_device
from layercollapse.kernels.topk_plan import Build, Plan, plan_for
from layercollapse.ops.checks import nan_error, too_many_error


def masked_topk_with(
    build: Build[Plan], weights: Sequence[Tensor], masks: Sequence[Tensor], k: Sequence[int], scope: str
) -> Tensor:
    """Run all passes of a plan made by ``build``; wait for the device once, at the end, to raise errors.

    While a CUDA graph is captured nothing is awaited and nothing raised: where an error would be, the replay changes
    nothing and its thresholds are NaN.
    """
    return masked_topk_again_with(build, weights, masks, scope)(k)


def masked_topk_again_with(
    build: Build[Plan], weights: Sequence[Tensor], masks: Sequence[Tensor], scope: str
) -> Callable[[Sequence[int]], Tensor]:
    """Return `masked_topk_with` of the same memory, as a function of k."""
    device = weights[0].device
    with on_device(device):
        plan = plan_for(build, weights, masks, scope)

    def call(k: Sequence[int]) -> Tensor:
        with on_device(device):
            return _run(plan, device, k, scope)

    return call


def _run(plan: Plan, device: torch.device, k: Sequence[int], scope: str) -> Tensor:
    if not plan.segments:
        for index, number in enumerate(k):
            if number:
                raise too_many_error(index, scope, number, 0)
        return torch.zeros(len(k), dtype=torch.float32, device=device)
    scratch = torch.empty(plan.scratch, dtype=torch.uint8, device=device)
    thresholds = torch.empty(len(k), dtype=torch.float32, device=device)
    plan.launch(k, scratch, thresholds)
    if not capturing(scratch) and int(scratch[:8].view(torch.int64)):
        code, index, kept = plan.outcome(k, scratch)
        raise nan_error(index) if code == 1 else too_many_error(index, scope, k[index], kept)
    return thresholds
