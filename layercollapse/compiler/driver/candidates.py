"""Which sites may collapse, with which guarantee, and why the others may not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layercollapse.compiler.analysis.bounds.propagate import Box, neuron_states
from layercollapse.compiler.analysis.constants import constants
from layercollapse.compiler.analysis.dataflow import along
from layercollapse.compiler.ir.graph import Net, shape, source
from layercollapse.compiler.ir.records import Activation, Affine
from layercollapse.compiler.passes.linearize import Known, NeuronStates, bending_sites, constant_sites
from layercollapse.entropy.layer import MIXED, OFF, SATURATED, STATES, LayerEntropy
from layercollapse.entropy.report import EntropyReport
from layercollapse.errors import LayerCollapseError
from layercollapse.graph import rectifiers
from layercollapse.graph.capture import Capture, Site
from layercollapse.graph.meta import VALUE

GUARANTEES = ("exact", "certified", "empirical", "approximate", "refitted")  # the strongest first


@dataclass(frozen=True)
class Candidate:
    """A site that may collapse, or lose neurons.

    Attributes:
        guarantee: see `layercollapse.collapse.SiteResult`.
        reason: one sentence.
        known: of its neurons.
    """

    guarantee: str
    reason: str
    known: Known

    @property
    def proven(self) -> bool:
        return self.guarantee not in ("empirical", "approximate")

    @property
    def partial(self) -> bool:
        """Whether the rectifier stays, with fewer neurons."""
        return self.known.partial


def candidates(
    captured: Capture,
    net: Net,
    report: EntropyReport | None,
    box: tuple[Any, Any] | Box | None,
    partial: bool = False,
) -> dict[str, Candidate]:
    """The sites that may collapse, by the strongest guarantee that holds; arguments as for `collapse`."""
    by_site: dict[str, Candidate] = {}
    for name, values in constant_sites(net).items():
        by_site[name] = Candidate("exact", "its input is constant: no weight that feeds it is left", values)
    known = [("exact", "whatever the input", neuron_states(net))]
    if box is not None:
        known.append(("certified", "for an input in the box", neuron_states(net, _by_input(box, captured))))
    for guarantee, when, sites in known:
        for name, states in sites.items():
            if not bool((states == MIXED).any()):
                by_site.setdefault(
                    name, Candidate(guarantee, f"no neuron can change its sign{_comma(when)}", NeuronStates(states))
                )
    replaceable = bending_sites(net)
    layers = entropies(captured, report)
    for layer in layers.values():
        if layer.collapsible and layer.name in replaceable:
            kinds = ", ".join(f"{layer.count(s)} {s}" for s in ("on", "off", "saturated") if layer.count(s))
            reason = f"no sign changed on {layer.samples:,} values per neuron ({kinds})"
            linear = rectifiers.BY_KIND[layer.kind].piecewise_linear
            by_site.setdefault(
                layer.name, Candidate("empirical" if linear else "approximate", reason, NeuronStates(layer.states))
            )
    if partial:
        counted = {n: x.states for n, x in layers.items() if x.samples and rectifiers.BY_KIND[x.kind].piecewise_linear}
        known.append(("empirical", "in the data counted", counted))
    return {**by_site, **_partial(captured, net, known, by_site)}


def _partial(
    captured: Capture, net: Net, known: Sequence[tuple[str, str, Mapping[str, Tensor]]], whole: Collection[str]
) -> dict[str, Candidate]:
    """Sites of which some neurons have one value: those that are off, or saturated; the strongest guarantee first.

    Not beside a layer that is called more than once: each of its calls would need weights of its own.
    """
    already, by_site = constants(net), {}
    calls = Counter(op.source[0] for _, op in net.records(Affine) if op.source is not None)
    for node, op in net.records(Activation):
        readers = [reader.source[0] for user in node.users if (reader := net.affine(user)) and reader.source]
        if op.site in whole or any(calls[name] > 1 for name in (*captured.site(op.site).feeding, *readers)):
            continue
        value = along(already.get(source(node)), op.channel_dim)
        left = torch.ones(shape(node)[op.channel_dim], dtype=torch.bool) if value is None else value.isnan()
        states = torch.full((len(left),), MIXED, dtype=torch.int8)
        reasons, weakest = list[str](), ""
        for guarantee, when, sites in known:
            theirs = sites.get(op.site)
            if theirs is None:
                continue
            # What is on only multiplies: a linear layer beside the rectifier could do its work, but of six trained and
            # pruned networks that saved 0.01 % of the multiply-accumulates of one.
            new = left & ((theirs == SATURATED) | ((theirs == OFF) & (op.slope is None or op.slope == 0)))
            states[new], left = theirs[new], left & ~new
            kinds = ", ".join(f"{n} {s}" for s in ("off", "saturated") if (n := _count(theirs[new], s)))
            if kinds:
                reasons.append(f"{kinds} {when}")
                weakest = guarantee
        if reasons:
            by_site[op.site] = Candidate(weakest, "; ".join(reasons), NeuronStates(states))
    return by_site


def _comma(when: str) -> str:
    """``, whatever the input``; but ``for an input in the box`` has no comma."""
    return f", {when}" if when.startswith("whatever") else f" {when}"


def _count(states: Tensor, state: str) -> int:
    return int((states == STATES.index(state)).sum())


def entropies(captured: Capture, report: EntropyReport | None) -> dict[str, LayerEntropy]:
    """The report's layers by site, without those of calls that the graph does not have.

    Raises:
        LayerCollapseError: it is no report, or one of another model.
    """
    if report is None:
        return {}
    if not isinstance(report, EntropyReport):
        raise LayerCollapseError(f"report: expected an EntropyReport or None, got {type(report).__name__}")
    layers = {layer.name: layer for layer in report if layer.name not in captured.unread}
    for name, layer in layers.items():
        site = captured.site(name)
        if (site.kind, site.channels) != (layer.kind, layer.neurons):
            raise LayerCollapseError(
                f"report: expected {site.channels} neurons of {site.kind} at {name!r}, "
                f"got {layer.neurons} of {layer.kind}"
            )
    return layers


def why_kept(captured: Capture, site: Site, layer: LayerEntropy | None, miss: str | None, replaceable: bool) -> str:
    """Why a rectifier stays, and how far it is from linear.

    Args:
        captured: the graph that the site is in.
        site: the site.
        layer: what was counted there.
        miss: what the outputs differ by without it, if that was tried, as `Agreement.miss` says it.
        replaceable: whether the rectifier is in a form that can be replaced.
    """
    if not replaceable:
        reason = _form(captured, site)
    elif miss is not None and (layer is None or not layer.mixed):
        reason = f"no sign changed on the data counted, but without it the outputs differ by {miss}"
    elif layer is None and site.name in captured.unread:
        reason = "counts of it cannot be told from those of another call in its module, whose result nothing reads"
    elif layer is None:
        reason = "no counts of it were given, and algebra and bounds do not prove it linear"
    elif layer.samples == 0:
        reason = "nothing was counted"
    else:
        reason = f"mixed: {layer.mixed} of {layer.neurons} neurons change sign{_closeness(layer)}"
        if miss is not None:
            reason += f"; without those that were steady on the data counted the outputs differ by {miss}"
    if not rectifiers.BY_KIND[site.kind].piecewise_linear:
        reason += f"; {site.kind} is not piecewise linear"
    return reason


def _closeness(layer: LayerEntropy) -> str:
    """How many values of its mixed neurons are not in the piece of the rectifier that has most of them."""
    shares = layer.rarer[layer.states == MIXED]
    if not len(shares):
        return ""
    low, high = (f"{100 * float(end):.2g}" for end in (shares.min(), shares.max()))
    share = f"{low if low == high else f'{low} to {high}'} %"
    if layer.counts.shape[1] == 5:
        return f" ({share} of their values are outside the most common of its three pieces)"
    return f" (the rarer sign is {share} of their values)"


def unreplaceable(captured: Capture, net: Net, site: Site) -> str | None:
    """Why the rectifier of a site of a net as lowered cannot be replaced; None where it can."""
    return None if site.name in bending_sites(net) else _form(captured, site)


def _form(captured: Capture, site: Site) -> str:
    """Why there is no record for a rectifier; see `frontend.converters`."""
    operands = captured.call_of(site).all_input_nodes
    if VALUE[operands[0]].ndim < 2:
        return "its tensor is (N,): it has no dimension of neurons"
    if site.kind == "prelu":
        return "its slopes are computed, not stored"
    return f"this form of {site.kind} cannot be replaced"


def _by_input(box: tuple[Any, Any] | Box, captured: Capture) -> Box:
    if isinstance(box, Mapping):
        return box
    if len(captured.inputs) != 1 or not isinstance(box, tuple | list) or len(box) != 2:
        raise LayerCollapseError(
            f"box: expected (low, high) for the one input, or a dict of these for {', '.join(captured.inputs)}, "
            f"got {box!r}"
        )
    return {captured.inputs[0]: (box[0], box[1])}
