"""From a pruned network to a shallower dense one.

    result = layercollapse.collapse(model, example_inputs, report, data=batches)
    result.model            # a plain nn.Module
    print(result.explain())

The steps, one module each: `lower` (graph to records), `linearize` (rectifiers that never bend), `rules` (fold,
drop, merge), `emit` (records to modules), `verify` (compare on data), `store` (save and load).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layercollapse import rectifiers
from layercollapse.collapse.cost import Summary, captured_depth, net_depth, summarize
from layercollapse.collapse.emit import emit
from layercollapse.collapse.linearize import constant_sites, linearize
from layercollapse.collapse.lower import lower
from layercollapse.collapse.result import CollapseResult, SiteResult
from layercollapse.collapse.rules import simplify
from layercollapse.collapse.store import load, save
from layercollapse.collapse.verify import Agreement, compare
from layercollapse.counts import EntropyReport, LayerEntropy
from layercollapse.errors import LayerCollapseError
from layercollapse.graph import Capture, Site, capture

__all__ = ["Agreement", "CollapseResult", "SiteResult", "Summary", "collapse", "compare", "load", "save"]


def collapse(
    model: nn.Module,
    example_inputs: Any,
    report: EntropyReport | None = None,
    *,
    data: Iterable[Any] | None = None,
    mode: str = "exact",
    tolerance: float = 1e-4,
) -> CollapseResult:
    """Remove the rectifiers that never bend, and merge what is left between the others.

    Sites whose input is constant (all their weights pruned) collapse whatever the report says; the others where the
    report has no mixed neuron. The model is not changed.

    Args:
        model: the trained, pruned model; it must be what `torch.export` can capture.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        report: of an `EntropyProbe` on this model, with these weights; None uses algebra alone.
        data: batches on which the collapsed model must agree with the model (a tensor, ``(x, ...)`` tuples, or
            dicts); without them it is compared on the example inputs.
        mode: ``"exact"``: two convolutions that no single one can replace at the border stay in sequence, without
            the rectifier between them.
        tolerance: largest absolute difference of any output that is accepted.

    Returns:
        The collapsed model and what is known of it.

    Raises:
        LayerCollapseError: an argument is not as described; the report is of another model; or the models differ by
            more than the tolerance even with the algebraic collapses alone (which means a numerically fragile
            network: constants that overflow its dtype, for instance). Where only the data-based collapses miss it,
            those are rolled back, and the sites say so.
    """
    if mode != "exact":
        raise LayerCollapseError(f"mode: expected 'exact', got {mode!r}")
    if not isinstance(tolerance, int | float) or not tolerance >= 0:
        raise LayerCollapseError(f"tolerance: expected a number not below 0, got {tolerance!r}")
    for name, value in model.named_parameters():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise LayerCollapseError(f"model: expected finite parameters, got NaN or infinity in {name!r}")
    captured = capture(model, example_inputs)
    entropies = _entropies(captured, report)
    batches = [example_inputs] if data is None else data
    if not isinstance(batches, Tensor) and iter(batches) is batches:
        batches = list(batches)  # an iterator would be empty at the second comparison
    constant = list(constant_sites(lower(captured, model)))
    states = {
        name: layer.states
        for name, layer in entropies.items()
        if layer.collapsible and name not in constant and rectifiers.BY_KIND[layer.kind].piecewise_linear
    }
    agreement, collapsed, depth = _attempt(captured, model, states, constant, batches)
    rolled_back: dict[str, Tensor] = {}
    if agreement.max_abs_error > tolerance and states:
        missed, rolled_back, states = agreement, states, {}
        agreement, collapsed, depth = _attempt(captured, model, states, constant, batches)
        reason = f"collapsing the sites that the data allow missed the tolerance: {missed.max_abs_error:.3g}"
    if agreement.max_abs_error > tolerance:
        raise LayerCollapseError(
            f"tolerance: expected outputs within {tolerance:g} of the model's, got {agreement.max_abs_error:.3g} with "
            "nothing but exact algebra; raise the tolerance if the outputs are large, or collapse in float64"
        )
    sites = []
    for site in captured.sites:
        if site.name in rolled_back:
            sites.append(SiteResult(site.name, site.kind, "kept", "", reason))
        else:
            sites.append(_site_result(site, entropies.get(site.name), states, constant))
    return CollapseResult(
        model=collapsed,
        sites=tuple(sites),
        before=summarize(model, example_inputs, captured_depth(captured)),
        after=summarize(collapsed, example_inputs, depth),
        max_abs_error=agreement.max_abs_error,
        same_predictions=agreement.same,
        samples=agreement.samples,
        example_inputs=example_inputs,
    )


def _attempt(
    captured: Capture, model: nn.Module, states: Mapping[str, Tensor], constant: list[str], data: Iterable[Any]
) -> tuple[Agreement, nn.Module, int]:
    """Collapse these sites, and compare."""
    net = lower(captured, model)
    linearize(net, states, constant)
    simplify(net)
    depth = net_depth(net)
    parameter = next(model.parameters(), None)
    emitted = emit(net, torch.device("cpu") if parameter is None else parameter.device)
    return compare(model, emitted, data), emitted, depth


def _entropies(captured: Capture, report: EntropyReport | None) -> dict[str, LayerEntropy]:
    """The report's layers by site, checked against the model."""
    if report is None:
        return {}
    if not isinstance(report, EntropyReport):
        raise LayerCollapseError(f"report: expected an EntropyReport or None, got {type(report).__name__}")
    entropies = {layer.name: layer for layer in report}
    for name, layer in entropies.items():
        site = captured.site(name)
        if (site.kind, site.channels) != (layer.kind, layer.neurons):
            raise LayerCollapseError(
                f"report: expected {site.channels} neurons of {site.kind} at {name!r}, "
                f"got {layer.neurons} of {layer.kind}"
            )
    return entropies


def _site_result(
    site: Site, layer: LayerEntropy | None, states: Mapping[str, Tensor], constant: list[str]
) -> SiteResult:
    """What to say of a site."""
    if site.name in constant:
        return SiteResult(
            site.name, site.kind, "collapsed", "exact", "its input is constant: no weight that feeds it is left"
        )
    if layer is None:
        return SiteResult(site.name, site.kind, "kept", "", "the report has no counts for it")
    if site.name in states:
        kinds = ", ".join(f"{layer.count(state)} {state}" for state in ("on", "off", "saturated") if layer.count(state))
        reason = f"no sign changed on {layer.samples:,} values per neuron ({kinds})"
        return SiteResult(site.name, site.kind, "collapsed", "empirical", reason)
    if not rectifiers.BY_KIND[site.kind].piecewise_linear:
        return SiteResult(site.name, site.kind, "kept", "", f"{site.kind} is not piecewise linear")
    if layer.samples == 0:
        return SiteResult(site.name, site.kind, "kept", "", "nothing was counted")
    return SiteResult(site.name, site.kind, "kept", "", f"{layer.mixed} of {layer.neurons} neurons are mixed")
