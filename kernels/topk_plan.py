"""The plans of masked_topk_ on a GPU, kept between calls: how csrc/plan/topk_plan.h cuts weights into segments.

A plan depends on addresses, types, shapes and strides. It keeps no tensor alive but its own tables, and k is no part of
it: the next step of a schedule takes the plan of the step before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from torch import Tensor

from layercollapse.kernels.launch import program_count
from layercollapse.kernels.tables import Kept, Table, tensors_key

SHORTEST = 32768  # entries of a segment at least; fewer in tests
CACHED = 16  # plans kept


class Plan(ABC):
    """A plan of one backend.

    Attributes:
        table: the tables one after the other.
        segments: S.
        scratch: bytes that a call needs; the first 8 are 0 unless something forbade the change.
    """

    table: Table
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

_plans: Kept[Plan] = Kept(CACHED)


def plan_for(build: Build[AnyPlan], weights: Sequence[Tensor], masks: Sequence[Tensor], scope: str) -> AnyPlan:
    """Return the plan for these tensors, kept from an earlier call if there was one.

    Args:
        build: makes a plan of the arguments that follow.
        weights: tensors on one device.
        masks: of each.
        scope: "layer" or "global", or "count" for `ops.topk_count`.
    """
    key = (build, scope, *tensors_key(weights, masks))
    op = "topk_count" if scope == "count" else "masked_topk_"
    plan = _plans.get(key, lambda: build(weights, masks, scope), weights[0], op, "tensors and scope")
    return cast(AnyPlan, plan)


def segments_wanted(tensor: Tensor) -> int:
    """Segments that keep the tensor's device busy: three for each of the 4 programs of a multiprocessor of an H100."""
    return program_count(tensor, 12)
