"""Which sites may collapse, with which guarantee, and why the others may not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from layercollapse import rectifiers
from layercollapse.collapse.bounds import Box, proven_states
from layercollapse.collapse.ir import Net
from layercollapse.collapse.linearize import bending_sites, constant_sites
from layercollapse.counts import EntropyReport, LayerEntropy
from layercollapse.errors import LayerCollapseError
from layercollapse.graph import Capture, Site

GUARANTEES = ("exact", "certified", "empirical", "approximate")  # the strongest first


@dataclass(frozen=True)
class Candidate:
    """A site that may collapse.

    Attributes:
        guarantee: see `layercollapse.collapse.SiteResult`.
        reason: one sentence.
        states: int8 (C,), see `layercollapse.counts.STATES`; None if its input is constant, so that the rectifier is
            evaluated and its states do not matter.
    """

    guarantee: str
    reason: str
    states: Tensor | None

    @property
    def proven(self) -> bool:
        return self.guarantee in ("exact", "certified")


def candidates(
    captured: Capture, net: Net, report: EntropyReport | None, box: tuple[Any, Any] | Box | None
) -> dict[str, Candidate]:
    """The sites that may collapse, by the strongest guarantee that holds; arguments as for `collapse`."""
    found: dict[str, Candidate] = {}
    for name in constant_sites(net):
        found[name] = Candidate("exact", "its input is constant: no weight that feeds it is left", None)
    for name, states in proven_states(net).items():
        found.setdefault(name, Candidate("exact", "no neuron can change its sign, whatever the input", states))
    if box is not None:
        for name, states in proven_states(net, _by_input(box, captured)).items():
            reason = "no neuron can change its sign for an input in the box"
            found.setdefault(name, Candidate("certified", reason, states))
    replaceable = bending_sites(net)
    for layer in entropies(captured, report).values():
        if layer.collapsible and layer.name in replaceable:
            kinds = ", ".join(f"{layer.count(s)} {s}" for s in ("on", "off", "saturated") if layer.count(s))
            reason = f"no sign changed on {layer.samples:,} values per neuron ({kinds})"
            linear = rectifiers.BY_KIND[layer.kind].piecewise_linear
            found.setdefault(layer.name, Candidate("empirical" if linear else "approximate", reason, layer.states))
    return found


def entropies(captured: Capture, report: EntropyReport | None) -> dict[str, LayerEntropy]:
    """The report's layers by site.

    Raises:
        LayerCollapseError: it is no report, or one of another model.
    """
    if report is None:
        return {}
    if not isinstance(report, EntropyReport):
        raise LayerCollapseError(f"report: expected an EntropyReport or None, got {type(report).__name__}")
    layers = {layer.name: layer for layer in report}
    for name, layer in layers.items():
        site = captured.site(name)
        if (site.kind, site.channels) != (layer.kind, layer.neurons):
            raise LayerCollapseError(
                f"report: expected {site.channels} neurons of {site.kind} at {name!r}, "
                f"got {layer.neurons} of {layer.kind}"
            )
    return layers


def why_kept(site: Site, layer: LayerEntropy | None, error: float | None) -> str:
    """Why a site did not collapse; `error` is what the outputs differ by without it, if that was tried."""
    if error is not None:
        reason = f"no sign changed on the data counted, but without it the outputs differ by {error:.3g}"
    elif layer is None:
        reason = "the report has no counts for it"
    elif layer.samples == 0:
        reason = "nothing was counted"
    elif layer.mixed:
        reason = f"{layer.mixed} of {layer.neurons} neurons are mixed"
    else:
        reason = "its parameters are computed, not stored"
    if not rectifiers.BY_KIND[site.kind].piecewise_linear:
        reason += f"; {site.kind} is not piecewise linear"
    return reason


def _by_input(box: tuple[Any, Any] | Box, captured: Capture) -> Box:
    if isinstance(box, Mapping):
        return box
    if len(captured.inputs) != 1 or not isinstance(box, tuple | list) or len(box) != 2:
        raise LayerCollapseError(
            f"box: expected (low, high) for the one input, or a dict of these for {', '.join(captured.inputs)}, "
            f"got {box!r}"
        )
    return {captured.inputs[0]: (box[0], box[1])}
