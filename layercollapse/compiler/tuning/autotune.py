"""The autotuner: how every region of a network is written, in the variant that is the fastest there.

Fewer multiply-accumulates are not always less time, and what saves time in one place costs time in another. Variants
differ in the passes that they do without; the regions are where that makes a difference.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from layercollapse.compiler.analysis.obstacles import sequences
from layercollapse.compiler.backend.emit import emit
from layercollapse.compiler.ir.graph import Net
from layercollapse.compiler.passes.context import Group, Omitted, PassContext
from layercollapse.compiler.passes.contract_search import MOST
from layercollapse.compiler.passes.linearize import Known, linearize
from layercollapse.compiler.passes.registry import run_passes
from layercollapse.compiler.tuning.regions import Recorder, regions, structure
from layercollapse.compiler.tuning.timer import CostModel
from layercollapse.compiler.tuning.variants import COMPARED, Race, Variant, race
from layercollapse.graph.export import call_arguments, copied

_LEFT_OUT = {variant: groups for variants in COMPARED for variant, groups in variants.items()}
# A race of one region may take so long, and all of them together.
_SECONDS, _SECONDS_IN_ALL = 0.2, 6.0


@dataclass(frozen=True)
class Choice:
    """How a region is written: a part of the network that there was more than one variant to write.

    Attributes:
        layers: the layers with weights in it, in any variant.
        variant: the fastest.
        times: variant -> median time in ms, of the region alone, on tensors as the example inputs make them.
        taken: whether the model is written so. Not if it was no faster as a whole.
    """

    layers: tuple[str, ...]
    variant: Variant
    times: Mapping[Variant, float]
    taken: bool = True


@dataclass(frozen=True)
class Start:
    """What every variant begins with.

    Attributes:
        base: the network as lowered; it stays as it is.
        known: the sites to linearize, as for `linearize`.
        cost: what decides between variants; None: every pass is applied.
        repad: see `PassContext`.
        left_out: the groups that no variant applies at a node: with them the outputs would miss the tolerance.
    """

    base: Net
    known: Mapping[str, Known]
    cost: CostModel | None = None
    repad: bool = False
    left_out: Omitted = lambda name: frozenset()

    def written(self, omitted: Omitted = lambda name: frozenset()) -> Written:
        """The network with all passes applied, but where they are omitted."""
        net = self.base.copy()
        context = PassContext(lambda name: {*self.left_out(name), *omitted(name)}, self.repad)
        if linearize(net, self.known, context):
            context.applied.add(Group.RECTIFIERS)
        run_passes(net, context)
        return Written(net, context)


class Written(NamedTuple):
    """A net, and the context of its passes."""

    net: Net
    context: PassContext

    @property
    def applied(self) -> set[Group]:
        """The groups that had something to do in it: `Group.THRIFT` where one layer could replace two that stay."""
        thrift = any(
            two.work is not None and two.work <= MOST and self.context.permits(Group.SEQUENCE, two.first, two.second)
            for two in sequences(self.net, self.context.repad)
        )
        return self.context.applied | ({Group.THRIFT} if thrift else set())


def choose(
    start: Start,
    every: Written,
    model: fx.GraphModule,
    example_inputs: Any,
    *,
    device: torch.device,
    shared: dict[str, Tensor],
) -> tuple[tuple[Choice, ...], Written | None]:
    """Time every region that there is more than one variant to write.

    Args:
        start: the network.
        every: the same with every pass applied.
        model: the module of that.
        example_inputs: see `collapse`.
        device: where it works.
        shared: see `emit`.

    Returns:
        The choices, in the order of the network, and the network in which every region is written as it is the fastest:
        None if that is with every pass applied.
    """
    assert start.cost is not None
    parts = [region for variants in COMPARED for region in regions(_nets(start, every, variants))]
    seen = _record(every.net, model, {name for region in parts for name in region.reads}, example_inputs)
    keys = [tuple((variant, structure(net)) for variant, net in region.variants.items()) for region in parts]
    seconds = min(_SECONDS, _SECONDS_IN_ALL / max(1, len(set(keys))))
    known: dict[Any, Race] = {}
    choices, left_out = [], dict[str, frozenset[Group]]()
    for region, key in zip(parts, keys, strict=True):
        if key not in known:
            # Zeros are as fast as anything else, and leave the user's random numbers alone.
            inputs = tuple(
                torch.zeros_like(x, device=device) if isinstance(x, Tensor) and x.is_meta else x
                for x in (seen[name] for name in region.reads)
            )
            models = {variant: emit(net, device, shared) for variant, net in region.variants.items()}
            known[key] = race(models, inputs, start.cost, Variant.ALL, seconds)
        variant, times = known[key].order[0], known[key].times
        choices.append(Choice(region.layers, variant, times))
        for name in region.names if variant != Variant.ALL else ():
            left_out[name] = left_out.get(name, frozenset()) | _LEFT_OUT[variant]
    if not left_out:
        return tuple(choices), None
    return tuple(choices), start.written(lambda name: left_out.get(name, frozenset()))


def _nets(start: Start, every: Written, variants: Mapping[Variant, frozenset[Group]]) -> dict[Variant, Net]:
    """The network in every variant that leaves out something, and something else than the variants before it."""
    nets, tried, applied = {Variant.ALL: every.net}, set[frozenset[Group]](), every.applied
    for variant, groups in variants.items():
        missing = groups & applied
        if missing and missing not in tried:
            tried.add(missing)
            nets[variant] = start.written(lambda name, groups=groups: groups).net  # type: ignore[misc]
    return nets


def _record(net: Net, model: fx.GraphModule, names: set[str], example_inputs: Any) -> dict[str, Any]:
    args, kwargs = copied(call_arguments(example_inputs))
    recorder = Recorder(net, model, names)
    if names:
        with torch.no_grad():
            recorder.run(*inspect.signature(model.forward).bind(*args, **kwargs).args)
    return recorder.seen
