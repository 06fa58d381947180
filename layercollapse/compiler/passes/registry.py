"""The rules, in one place, and the loop that applies them until none changes anything.

A rule is a function that takes a net, rewrites what it can without changing what the net computes, and tells whether
it did. Each removes something (a scale, a channel, a layer, a tap) or moves a scale towards a layer that takes it, so
the loop ends.
"""

from __future__ import annotations

from collections.abc import Callable

from layercollapse.compiler.ir.graph import Net
from layercollapse.compiler.passes.concat import (
    flatten_concatenations,
    lift_through_concatenations,
    merge_neighbours,
    split_over_concatenations,
)
from layercollapse.compiler.passes.constants import constants_in_products, constants_in_sums
from layercollapse.compiler.passes.contract_chain import merge_in_sequence
from layercollapse.compiler.passes.contract_paths import merge_paths
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

Rule = Callable[[Net], bool]

RULES: tuple[Rule, ...] = (
    drop_identities,
    fold_scales_up,
    fold_constants,
    cut_dead_layers,
    constants_in_sums,
    constants_in_products,
    drop_unread_channels,
    fold_scales_down,
    lift_through_sums,
    flatten_concatenations,
    lift_through_concatenations,
    sink_scales,
    sink_layers,
    strip_norms,
    raise_references,
    trim_kernels,
    merge_paths,
    merge_in_sequence,
    merge_with_pooling,
    merge_through_flatten,
    merge_neighbours,
    split_over_concatenations,
)


def simplify(net: Net, rules: tuple[Rule, ...] = RULES) -> set[Rule]:
    """Apply rules in order, from the first again after every change, until none has anything to do.

    Returns:
        Those that had something to do.
    """
    applied = set()
    net.sweep()
    while (rule := next((rule for rule in rules if rule(net)), None)) is not None:
        applied.add(rule)
        net.sweep()
    net.graph.lint()
    return applied
