"""The passes in their order, and the loop that applies them until none changes anything.

Each removes something (a scale, a channel, a layer, a tap) or moves a scale towards a layer that takes it, so the loop
ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from layercollapse.compiler.ir.graph import Net
from layercollapse.compiler.passes.concat import (
    flatten_concatenations,
    lift_through_concatenations,
    merge_neighbours,
    split_over_concatenations,
)
from layercollapse.compiler.passes.constants import constants_in_products, constants_in_sums
from layercollapse.compiler.passes.context import Group, PassContext
from layercollapse.compiler.passes.contract import contract
from layercollapse.compiler.passes.dead_channels import drop_unread_channels
from layercollapse.compiler.passes.fold import (
    cut_dead_layers,
    drop_identities,
    fold_constants,
    fold_scales_down,
    fold_scales_up,
    lift_through_sums,
    raise_references,
    sink_scales,
)
from layercollapse.compiler.passes.norms import strip_norms
from layercollapse.compiler.passes.pooling import merge_through_flatten, merge_with_pooling, sink_layers
from layercollapse.compiler.passes.trim import trim_kernels
from layercollapse.errors import LayerCollapseError


@dataclass(frozen=True)
class Pass:
    """A rewrite of the graph that keeps what it computes.

    Attributes:
        run: takes a graph and a context, rewrites what it can, and tells whether it did.
        groups: what the autotuner tries without; none where the result is never slower. A pass of several puts those
            that acted into `PassContext.applied` itself.
    """

    run: Callable[[Net, PassContext], bool]
    groups: tuple[Group, ...] = ()

    @property
    def name(self) -> str:
        return self.run.__name__


PASSES = (
    Pass(drop_identities),
    Pass(fold_scales_up),
    Pass(fold_constants),
    Pass(cut_dead_layers),
    Pass(constants_in_sums),
    Pass(constants_in_products),
    Pass(drop_unread_channels, (Group.CHANNELS,)),
    Pass(fold_scales_down),
    Pass(lift_through_sums),
    Pass(flatten_concatenations),
    Pass(lift_through_concatenations),
    Pass(sink_scales),
    Pass(sink_layers, (Group.POOLING,)),
    Pass(strip_norms),
    Pass(raise_references),
    Pass(trim_kernels, (Group.TRIM,)),
    Pass(contract, (Group.SEQUENCE, Group.PARALLEL, Group.THRIFT)),
    Pass(merge_with_pooling, (Group.POOLING,)),
    Pass(merge_through_flatten, (Group.POOLING,)),
    Pass(merge_neighbours, (Group.PARALLEL,)),
    Pass(split_over_concatenations, (Group.CONCATENATION,)),
)


def run_passes(net: Net, context: PassContext, passes: Sequence[Pass] = PASSES) -> None:
    """Apply passes in order, from the first again after every change, until none has anything to do."""
    net.sweep()
    while (acted := next((one for one in passes if _run(one, net, context)), None)) is not None:
        if len(acted.groups) == 1:
            context.applied.update(acted.groups)
        net.sweep()
    net.graph.lint()


def _run(one: Pass, net: Net, context: PassContext) -> bool:
    try:
        return one.run(net, context)
    except (LayerCollapseError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise RuntimeError(f"collapse: the pass {one.name} failed: {type(error).__name__}: {error}") from error
