"""The ways to write one collapsed network as a whole, and the race between them and the model that came."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from layercollapse.compiler.analysis.cost import net_depth, summarize
from layercollapse.compiler.analysis.obstacles import obstacles, sequences
from layercollapse.compiler.analysis.outline import Part, outline
from layercollapse.compiler.backend.emit import emit
from layercollapse.compiler.ir.graph import Net, shape
from layercollapse.compiler.ir.records import Activation
from layercollapse.compiler.passes.context import Group, PassContext
from layercollapse.compiler.tuning.timer import MARGIN, CostModel, ordered


class Variant(str, enum.Enum):
    """What a region, or the whole network, is written as; equal to the text that reports show."""

    INPUT = "the model as it came"
    UNCHANGED = "nothing removed or merged"
    ALL = "every pass applied"
    CHOSEN = "every region as it is fastest"
    SEQUENCE = "layers kept in sequence"
    PARALLEL = "layers kept side by side"
    THRIFT = "layers merged though that is more work"
    CONCATENATION = "concatenations kept"
    POOLING = "layers kept before pooling and flatten"
    TRIM = "kernels not trimmed"
    UNMERGED = "layers kept as they are"
    CHANNELS = "channels dropped in eights"
    RECTIFIERS = "rectifiers kept"

    __str__ = str.__str__


MERGES = frozenset({Group.SEQUENCE, Group.PARALLEL, Group.CONCATENATION, Group.POOLING, Group.TRIM})
# Variant -> the passes that it does without. Those of one list are compared with each other: channels and rectifiers
# concern the layers on both sides, and with the others they would make one region of many.
COMPARED: tuple[dict[Variant, frozenset[Group]], ...] = (
    {
        **{Variant[group.name]: frozenset({group}) for group in Group if group in {*MERGES, Group.THRIFT}},
        Variant.UNMERGED: MERGES,
    },
    {Variant.CHANNELS: frozenset({Group.CHANNELS})},
    {Variant.RECTIFIERS: frozenset({Group.RECTIFIERS})},
)


@dataclass(frozen=True)
class Form:
    """One way to write the collapsed network.

    Attributes:
        name: what was done.
        model: the module.
        depth: the largest number of affine layers with weights on any path.
        bending: site that still has its rectifier -> neurons that it has left.
        kept: layers that follow each other and stay two, "first", "second" -> why.
        repadded: layers that merged though that changes the border, "first → last".
        calls: weight of the model that a layer still has as it was -> of how many calls.
        parts: its layers and rectifiers, in execution order.
    """

    name: Variant
    model: fx.GraphModule
    depth: int
    bending: Mapping[str, int]
    kept: Mapping[tuple[str, str], str]
    repadded: tuple[str, ...]
    calls: Mapping[str, int]
    parts: tuple[Part, ...] = ()


def form(name: Variant, net: Net, context: PassContext, device: torch.device, shared: dict[str, Tensor]) -> Form:
    """The form of a net, which is used up; `shared` as for `emit`."""
    facts: dict[str, Any] = {
        "depth": net_depth(net),
        "bending": {op.site: shape(node)[op.channel_dim] for node, op in net.records(Activation)},
        "kept": {} if name == Variant.UNCHANGED else {**obstacles(net), **_in_sequence(net, context)},
        "repadded": tuple(" → ".join(pair) for pair in context.repadded),
        "calls": net.calls(),
        "parts": outline(net),
    }
    return Form(name, emit(net, device, shared), **facts)


def _in_sequence(net: Net, context: PassContext) -> dict[tuple[str, str], str]:
    """Layers that follow each other and stay two -> why, where they were free to merge."""
    return {
        (str(two.first.target), str(two.second.target)): two.reason
        for two in sequences(net, context.repad)
        if context.permits(Group.SEQUENCE, two.first, two.second)
    }


Models: TypeAlias = Mapping[Variant, nn.Module]
# Of every model in a race.
PASSES = 50


@dataclass(frozen=True)
class Race:
    """What was measured.

    Attributes:
        times: form, or `Variant.INPUT`, -> median time of a forward pass on the example inputs, in ms.
        order: the forms, best first: those in turn that the next is not faster than by more than the margin.
    """

    times: dict[Variant, float]
    order: tuple[Variant, ...]

    def slower_than_input(self, name: Variant) -> bool:
        """Whether a form takes longer than the input, by more than the margin."""
        return Variant.INPUT in self.times and self.times[name] > (1 + MARGIN) * self.times[Variant.INPUT]


def race(models: Models, example_inputs: Any, cost: CostModel, first: Variant, seconds: float) -> Race:
    """Time forms in turns: the first wins, unless another is faster by more than the margin, and again the second time.

    The second race is three times as long. It is run too where the first form seems slower than the input.

    Args:
        models: the forms, and the model that they came from if it is to be timed, too.
        example_inputs: for all of them, see `collapse`.
        cost: measures them.
        first: the form that keeps its place.
        seconds: of the first race.
    """
    early = once(models, example_inputs, cost, first, seconds=seconds)
    if early.order[0] == first and not early.slower_than_input(first):
        return early
    ahead = (Variant.INPUT, *early.order[: early.order.index(first) + 1])
    models = {name: models[name] for name in ahead if name in models}
    late = once(models, example_inputs, cost, first, seconds=3 * seconds, passes=3 * PASSES)
    return Race(early.times | late.times, late.order)


def once(
    models: Models, example_inputs: Any, cost: CostModel, first: Variant, *, seconds: float, passes: int = PASSES
) -> Race:
    """One race, of so many passes and seconds at most."""
    times = cost.networks(models, example_inputs, seconds=seconds, passes=passes)
    return Race(times, ordered(times, [name for name in models if name != Variant.INPUT], first))


def cheaper(one: Form, other: Form, example_inputs: Any, cost: CostModel | None) -> bool:
    """Whether a form takes less time than another, by more than the margin; or, without a cost model, less work."""
    if cost is None:
        return summarize(one.model, example_inputs, 0).macs < summarize(other.model, example_inputs, 0).macs
    times = cost.networks({True: one.model, False: other.model}, example_inputs, seconds=1.0, passes=50)
    return times[True] < (1 - MARGIN) * times[False]
