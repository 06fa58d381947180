"""The choice of how every region of a network is written: the way that is the fastest there.

Fewer multiply-accumulates are not always less time, and what saves time in one place costs time in another. The ways
differ in one rule each, or in all that may cost time; the regions are where that makes a difference.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx

from layercollapse.compiler.backend.emit import emit
from layercollapse.compiler.ir.graph import Net, Omitted
from layercollapse.compiler.passes.concat import merge_neighbours, split_over_concatenations
from layercollapse.compiler.passes.contract_chain import merge_in_sequence
from layercollapse.compiler.passes.contract_paths import merge_paths
from layercollapse.compiler.passes.dead_channels import drop_unread_channels
from layercollapse.compiler.passes.linearize import linearize
from layercollapse.compiler.passes.pooling import merge_through_flatten, merge_with_pooling, sink_layers
from layercollapse.compiler.passes.registry import simplify
from layercollapse.compiler.passes.trim import trim_kernels
from layercollapse.compiler.tuning import timer as race
from layercollapse.compiler.tuning.regions import Recorder, Region, regions, structure
from layercollapse.export import call_arguments, copied

Ways: TypeAlias = dict[str, frozenset[Callable[..., object]]]

ALL = "every rule applied"
KEPT = "rectifiers kept"
# What a way is called, and the rules that it leaves out; `drop_unread_channels` then drops channels in eights, so that
# nothing else need be left out.
MERGES: Ways = {
    "layers kept in sequence": frozenset({merge_in_sequence}),
    "layers kept side by side": frozenset({merge_paths, merge_neighbours}),
    "concatenations kept": frozenset({split_over_concatenations}),
    "layers kept before pooling and flatten": frozenset({sink_layers, merge_with_pooling, merge_through_flatten}),
    "kernels not trimmed": frozenset({trim_kernels}),
}
UNMERGED = frozenset[Callable[..., object]]().union(*MERGES.values())
# The ways of one group are compared with each other. Channels and rectifiers concern the layers on both sides: with
# the others they would make one region of many.
_GROUPS: tuple[Ways, ...] = (
    {**MERGES, "layers kept as they are": UNMERGED},
    {"channels dropped in eights": frozenset({drop_unread_channels})},
    {KEPT: frozenset({linearize})},
)
_LEFT_OUT = {way: rules for ways in _GROUPS for way, rules in ways.items()}
# A race of one region may take so long, and all of them together.
_SECONDS, _SECONDS_IN_ALL = 0.2, 6.0
_PASSES = 50


@dataclass(frozen=True)
class Choice:
    """How a region is written: a part of the network that there was more than one way to write.

    Attributes:
        layers: the layers with weights in it, in any way.
        way: the fastest.
        times: way -> median time in ms, of the region alone, on tensors as the example inputs make them.
        taken: whether the model is written so. Not if it was no faster as a whole.
    """

    layers: tuple[str, ...]
    way: str
    times: Mapping[str, float]
    taken: bool = True


@dataclass(frozen=True)
class Start:
    """What every way begins with.

    Attributes:
        base: the network as lowered; it stays as it is.
        states: the sites to linearize, as for `linearize`.
        left_out: the rules that no way applies at a node: with them the outputs would miss the tolerance.
    """

    base: Net
    states: Mapping[str, Tensor]
    left_out: Omitted = lambda name: frozenset()

    def written(self, omitted: Omitted = lambda name: frozenset()) -> Written:
        """The network with the rules applied, but where they are omitted."""
        net = self.base.copy()
        net.omitted = lambda name: {*self.left_out(name), *omitted(name)}
        linear = linearize(net, self.states)
        applied: set[Callable[..., object]] = {*simplify(net)}
        return Written(net, applied | {linearize} if linear else applied)


class Written(NamedTuple):
    """A net, and the rules that had something to do in it."""

    net: Net
    applied: set[Callable[..., object]]


def choose(
    start: Start,
    every: Written,
    model: fx.GraphModule,
    example_inputs: Any,
    *,
    device: torch.device,
    shared: dict[str, Tensor],
) -> tuple[tuple[Choice, ...], Net | None]:
    """Time every region that there is more than one way to write.

    Args:
        start: the network.
        every: the same with every rule applied.
        model: the module of that.
        example_inputs: see `collapse`.
        device: where it works.
        shared: see `emit`.

    Returns:
        The choices, in the order of the network, and the net in which every region is written as it is the fastest:
        None if that is with every rule applied.
    """
    found = [region for ways in _GROUPS for region in regions(_nets(start, every, ways))]
    seen = _record(every.net, model, {name for region in found for name in region.reads}, example_inputs)
    keys = [tuple((way, structure(net)) for way, net in region.ways.items()) for region in found]
    seconds = min(_SECONDS, _SECONDS_IN_ALL / max(1, len(set(keys))))
    known: dict[Any, tuple[str, Mapping[str, float]]] = {}
    choices, left_out = [], dict[str, frozenset[Callable[..., object]]]()
    for region, key in zip(found, keys, strict=True):
        if key not in known:
            known[key] = _race(region, seen, device, shared, seconds)
        way, times = known[key]
        choices.append(Choice(region.layers, way, times))
        for name in region.names if way != ALL else ():
            left_out[name] = left_out.get(name, frozenset()) | _LEFT_OUT[way]
    if not left_out:
        return tuple(choices), None
    return tuple(choices), start.written(lambda name: left_out.get(name, frozenset())).net


def _nets(start: Start, every: Written, ways: Ways) -> dict[str, Net]:
    """The network in every way that leaves out something, and something else than the ways before it."""
    nets, tried = {ALL: every.net}, set[frozenset]()
    for way, rules in ways.items():
        missing = rules & every.applied
        if missing and missing not in tried:
            tried.add(missing)
            nets[way] = start.written(lambda name, rules=rules: rules).net  # type: ignore[misc]
    return nets


def _record(net: Net, model: fx.GraphModule, names: set[str], example_inputs: Any) -> dict[str, Any]:
    args, kwargs = copied(call_arguments(example_inputs))
    recorder = Recorder(net, model, names)
    if names:
        with torch.no_grad():
            recorder.run(*inspect.signature(model.forward).bind(*args, **kwargs).args)
    return recorder.seen


def _race(
    region: Region, seen: Mapping[str, Any], device: torch.device, shared: dict[str, Tensor], seconds: float
) -> tuple[str, Mapping[str, float]]:
    """The way that is the fastest, twice, or every rule; and the times."""
    # Zeros are as fast as anything else, and leave the user's random numbers alone.
    inputs = tuple(
        torch.zeros_like(x, device=device) if isinstance(x, Tensor) and x.is_meta else x
        for x in (seen[name] for name in region.reads)
    )
    models = {way: emit(net, device, shared) for way, net in region.ways.items()}
    times = race.timed(models, inputs, device, seconds=seconds, passes=_PASSES)
    order = race.ordered(times, times, ALL)
    if order[0] != ALL:
        ahead = {way: models[way] for way in order[: order.index(ALL) + 1]}
        times |= race.timed(ahead, inputs, device, seconds=3 * seconds, passes=3 * _PASSES)
        order = race.ordered(times, ahead, ALL)
    return order[0], times
