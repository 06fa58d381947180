"""The ways to write one collapsed network, and the race that chooses among them.

All forms compute the same. The first has every rule applied; each of the others leaves out one that changed the
first: fewer multiply-accumulates are not always less time. On one core of an EPYC a 1x1 convolution of 15 channels took
a third longer than one of 16 (0.38 ms instead of 0.28 ms, 16 maps of 28x28).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from layercollapse.collapse.bypass import carry_straight
from layercollapse.collapse.chain import merge_in_sequence
from layercollapse.collapse.channels import drop_unread_channels
from layercollapse.collapse.cost import net_depth
from layercollapse.collapse.emit import emit, emit_all
from layercollapse.collapse.ir import Affine, Net, Rectify, shape
from layercollapse.collapse.linearize import linearize
from layercollapse.collapse.merge import merge_side_by_side, trim_kernels
from layercollapse.collapse.obstacles import obstacles
from layercollapse.collapse.rules import CARRYING, RULES, Rule, simplify
from layercollapse.collapse.split import split_layers
from layercollapse.export import call_arguments, copied, evaluating
from layercollapse.measure import in_turns

INPUT = "the model as it came"
ALL = "every rule applied"
UNCHANGED = "nothing removed or merged"
CARRIED = "neurons that only multiply carried by a layer beside the rectifier"
# Rules that may cost time, and what the form without one is called.
_OPTIONAL: dict[Rule, str] = {
    merge_in_sequence: "no layers merged in sequence",
    merge_side_by_side: "no layers merged side by side",
    trim_kernels: "kernels not trimmed",
    drop_unread_channels: "channels dropped in eights",
    split_layers: "no layers split",
}
_EIGHTS = 8
# Of two times that differ by less, neither is called faster. Medians of one network in turns with copies of itself
# differed by 1 to 4 % on one core of a quiet machine, and by tens of per cent on a busy one: an outcome that matters
# has to come twice.
MARGIN = 0.03


@dataclass(frozen=True)
class Form:
    """One way to write the collapsed network.

    Attributes:
        name: what was done, or left out.
        model: the module.
        depth: the largest number of affine layers with weights on any path.
        bending: site that still has its rectifier -> neurons that it has left.
        carried: site -> neurons of it that a layer beside the rectifier has taken over.
        kept: layers that follow each other and stay two, "first", "second" -> why.
        changed: whether it does anything but what the model does, call by call.
        repadded: layers that merged though that changes the border, "first → last".
        split: layer that became several -> which, and what that saves.
    """

    name: str
    model: fx.GraphModule
    depth: int
    bending: Mapping[str, int]
    carried: Mapping[str, int]
    kept: Mapping[tuple[str, str], str]
    changed: bool
    repadded: tuple[str, ...]
    split: Mapping[str, str]


def forms(
    base: Net,
    states: Mapping[str, Tensor | None],
    *,
    clock: Callable[[Affine, tuple[int, ...]], float] | None,
    device: torch.device,
    alternatives: bool,
    repad: bool = False,
) -> list[Form]:
    """The forms of a collapse, the one with every rule applied first.

    Args:
        base: the network as lowered; it stays as it is.
        states: the sites to linearize, as for `linearize`.
        clock: measures layers, or None to count multiply-accumulates.
        device: where the parameters go.
        alternatives: whether to make more than the first form.
        repad: whether layers may merge that differ at the border then.
    """
    start = base.copy()
    start.clock, start.repad = clock, repad
    linear = linearize(start, states)
    first = start.copy()
    applied = simplify(first, CARRYING if clock is None else RULES)
    made, changed = {ALL: first}, linear or bool(applied)
    for rule in _OPTIONAL if alternatives else ():
        if rule not in applied:
            continue
        net = start.copy()
        if rule is drop_unread_channels:
            net.multiple = _EIGHTS
            simplify(net)
        else:
            simplify(net, tuple(r for r in RULES if r is not rule))
        if not any(_same(net, other) for other in made.values()):
            made[_OPTIONAL[rule]] = net
    carrying = first.copy()  # a rule that comes last
    if alternatives and clock is not None and carry_straight(carrying):
        simplify(carrying, CARRYING)
        made[CARRIED] = carrying
    facts = []
    for net in made.values():
        kept, repadded = {**net.kept, **obstacles(net)}, tuple(" → ".join(pair) for pair in net.repadded)
        split = {name: text for name, (_, text) in net.split.items()}
        differs = changed or bool(net.carried)
        facts.append((net_depth(net), _neurons(net), net.carried, kept, differs, repadded, split))
    models = emit_all(list(made.values()), device)
    return [Form(name, model, *known) for name, model, known in zip(made, models, facts, strict=True)]


def unchanged(base: Net, device: torch.device) -> Form:
    """The network as lowered, layer by layer."""
    return Form(UNCHANGED, emit(base.copy(), device), net_depth(base), _neurons(base), {}, {}, False, (), {})


def _neurons(net: Net) -> dict[str, int]:
    return {op.site: shape(node)[op.channel_dim] for node, op in net.records(Rectify)}


def _same(a: Net, b: Net) -> bool:
    """Whether two nets do the same operations with layers of the same sizes."""
    if len(a.graph.nodes) != len(b.graph.nodes):
        return False
    for x, y in zip(a.graph.nodes, b.graph.nodes, strict=True):
        if (x.op, x.target, x.meta.get("shape")) != (y.op, y.target, y.meta.get("shape")):
            return False
        p, q = a.op(x), b.op(y)
        if type(p) is not type(q):
            return False
        if isinstance(p, Affine) and isinstance(q, Affine) and (p.size, p.window) != (q.size, q.window):
            return False
    return True


@dataclass(frozen=True)
class Race:
    """What was measured.

    Attributes:
        times: form, or `INPUT`, -> median time of a forward pass on the example inputs, in ms.
        order: the forms, best first: those in turn that the next is not faster than by more than the margin.
    """

    times: dict[str, float]
    order: tuple[str, ...]

    @property
    def slower(self) -> bool:
        """Whether the best form takes longer than the input, by more than the margin."""
        return bool(self.order) and self.slower_than_input(self.order[0])

    def slower_than_input(self, name: str) -> bool:
        """Whether a form takes longer than the input, by more than the margin."""
        return self.times[name] > (1 + MARGIN) * self.times[INPUT]


def race(model: nn.Module, made: list[Form], example_inputs: Any, device: torch.device) -> Race:
    """Time the forms against the model that they came from, in turns.

    The first form wins, unless another is faster by more than the margin, and again in a second, longer race. That is
    run too where the first form seems slower than the model that came.
    """
    times = _timed({INPUT: model, **{form.name: form.model for form in made}}, example_inputs, device, passes=50)
    found = Race(times, _ordered(times))
    if not found.slower and found.order[0] == ALL:
        return found
    ahead = found.order[: found.order.index(ALL) + 1]
    return again(found, model, [form for form in made if form.name in ahead], example_inputs, device)


def again(race: Race, model: nn.Module, made: list[Form], example_inputs: Any, device: torch.device) -> Race:
    """A race with its second, longer part repeated for other forms."""
    times = _timed({INPUT: model, **{form.name: form.model for form in made}}, example_inputs, device, passes=150)
    return Race(race.times | times, _ordered(times))


def _ordered(times: Mapping[str, float]) -> tuple[str, ...]:
    """The forms by time; the first of them keeps its place against those that are within the margin."""
    names = [name for name in times if name != INPUT]
    return tuple(sorted(names, key=lambda name: times[name] * (1 - MARGIN if name == ALL else 1)))


def _timed(models: Mapping[str, nn.Module], example_inputs: Any, device: torch.device, passes: int) -> dict[str, float]:
    args, kwargs = call_arguments(example_inputs)
    calls = []
    for model in models.values():
        # A model may work in place on what it is given: each has its own.
        own = copied((args, kwargs))
        calls.append(partial(model, *own[0], **own[1]))
    with evaluating(models[INPUT]), torch.no_grad():
        limits: Any = {"seconds": passes / 50, "warmup": 2, "minimum": 6, "maximum": passes}
        return dict(zip(models, in_turns(calls, device, **limits), strict=True))
