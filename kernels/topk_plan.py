"""The plans of masked_topk_ on a GPU, kept between calls: how csrc/plan/topk_plan.h cuts weights into segments.

A plan depends on addresses, types, shapes and strides. It keeps no tensor alive but its own tables, and k is no part of
it: the next step of a schedule takes the plan of the step before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layercollapse.errors import LayerCollapseError
from layercollapse.kernels.launch import capturing, program_count

SHORTEST = 32768  # entries of a segment at least; fewer in tests
CACHED = 16  # plans kept


class Plan(ABC):
    """A plan of one backend.

    Attributes:
        table: int64, the tables one after the other, on the device of the weights.
        segments: S.
        scratch: bytes that a call needs; the first 8 are 0 unless something forbade the change.
    """

    table: Tensor
    segments: int
    scratch: int

    @abstractmethod
    def launch(self, k: Sequence[int], scratch: Tensor, thresholds: Tensor) -> None:
        """Run all passes; thresholds are NaN where something forbade the change."""

    @abstractmethod
    def outcome(self, k: Sequence[int], scratch: Tensor) -> tuple[int, int, int]:
        """Wait; return 1 and the tensor of a NaN, or 2, the group that keeps too few, and how many it keeps."""


AnyPlan = TypeVar("AnyPlan", bound=Plan)
Build = Callable[[Sequence[Tensor], Sequence[Tensor], str], AnyPlan]

_plans: OrderedDict[tuple[object, ...], Plan] = OrderedDict()
_captured: list[Plan] = []  # graphs read their tables whenever they are replayed: these are never freed


def plan_for(build: Build[AnyPlan], weights: Sequence[Tensor], masks: Sequence[Tensor], scope: str) -> AnyPlan:
    """Return the plan for these tensors, kept from an earlier call if there was one.

    Args:
        build: makes a plan of the arguments that follow.
        weights: tensors on one device.
        masks: of each.
        scope: "layer" or "global", or "count" for `ops.topk_count`.
    """
    # Whatever lies at an address, a plan for this type, shape and strides is right for it.
    key = (
        build,
        scope,
        weights[0].device,
        *((w.data_ptr(), m.data_ptr(), w.dtype, w.shape, w.stride()) for w, m in zip(weights, masks, strict=True)),
    )
    plan = _plans.pop(key, None)
    if capturing(weights[0]):
        if plan is None:
            raise uncaptured("tensors and scope")
        _captured.append(plan)
    elif plan is None:
        plan = build(weights, masks, scope)
    _plans[key] = plan
    while len(_plans) > CACHED:
        _plans.popitem(last=False)
    return cast(AnyPlan, plan)


def uncaptured(what: str) -> LayerCollapseError:
    """Return the error for a graph that would have to copy something to the device."""
    return LayerCollapseError(
        f"masked_topk_: expected a call with these {what} before a CUDA graph captures one, "
        "got none: nothing may be copied to the device while capturing"
    )


def segments_wanted(tensor: Tensor) -> int:
    """Segments that keep the tensor's device busy: two for each program that it runs at once."""
    return 2 * program_count(tensor)


def to_device(numbers: NDArray[np.int64], like: Tensor) -> Tensor:
    """Copy numbers to the device of a tensor, without waiting for it."""
    host = torch.from_numpy(numbers)
    return host.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else host
