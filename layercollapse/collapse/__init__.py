"""From a pruned network to a shallower dense one.

    result = layercollapse.collapse(model, example_inputs, report, data=batches)
    result.model            # a plain nn.Module
    print(result.explain())

The steps, one module each: `lower` (graph to records), `linearize` (rectifiers that never bend), `rules` (fold,
drop, merge), `emit` (records to modules), `verify` (compare on data), `store` (save and load).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layercollapse import rectifiers
from layercollapse.collapse.cost import Summary, captured_depth, net_depth, summarize
from layercollapse.collapse.emit import emit
from layercollapse.collapse.linearize import bending_sites, constant_sites, linearize
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
    report has no mixed neuron. Where these miss the tolerance on the data they are tried one by one, and those that
    miss it are kept. The model is not changed.

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
        LayerCollapseError: an argument is not as described; the report is of another model; or the outputs differ by
            more than the tolerance with nothing but exact algebra (a fragile network: constants that overflow its
            dtype, for instance).
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
    net = lower(captured, model)
    constant, replaceable = list(constant_sites(net)), bending_sites(net)
    states = {
        name: layer.states
        for name, layer in entropies.items()
        if layer.collapsible and name in replaceable - set(constant)
    }

    def attempt(sites: Mapping[str, Tensor]) -> _Attempt:
        return _attempt(captured, model, sites, constant, batches)

    best, missed = _within(tolerance, states, attempt)
    if best.agreement.max_abs_error > tolerance:
        raise LayerCollapseError(
            f"tolerance: expected outputs within {tolerance:g} of the model's, got {best.agreement.max_abs_error:.3g} "
            "with nothing but exact algebra; raise the tolerance if the outputs are large, or collapse in float64"
        )
    return CollapseResult(
        model=best.model,
        sites=tuple(
            _site_result(site, entropies.get(site.name), best.states, constant, missed) for site in captured.sites
        ),
        before=summarize(model, example_inputs, captured_depth(captured)),
        after=summarize(best.model, example_inputs, best.depth),
        max_abs_error=best.agreement.max_abs_error,
        same_predictions=best.agreement.same,
        samples=best.agreement.samples,
        example_inputs=example_inputs,
    )


@dataclass(frozen=True)
class _Attempt:
    """A collapse of some sites, and how it compares."""

    states: Mapping[str, Tensor]
    agreement: Agreement
    model: nn.Module
    depth: int


def _attempt(
    captured: Capture, model: nn.Module, states: Mapping[str, Tensor], constant: list[str], data: Iterable[Any]
) -> _Attempt:
    net = lower(captured, model)
    linearize(net, states, constant)
    simplify(net)
    depth = net_depth(net)
    parameter = next(model.parameters(), None)
    emitted = emit(net, torch.device("cpu") if parameter is None else parameter.device)
    return _Attempt(states, compare(model, emitted, data), emitted, depth)


def _within(
    tolerance: float, states: Mapping[str, Tensor], attempt: Callable[[Mapping[str, Tensor]], _Attempt]
) -> tuple[_Attempt, dict[str, float]]:
    """Collapse all sites, or, where that misses the tolerance, one after the other, leaving out those that miss it.

    Returns:
        The best attempt, and for every site left out the error that it made.
    """
    whole = attempt(states)
    if not states or whole.agreement.max_abs_error <= tolerance:
        return whole, {}
    best, missed = attempt({}), {}
    for name, state in states.items():
        more = attempt({**best.states, name: state})
        if more.agreement.max_abs_error <= tolerance:
            best = more
        else:
            missed[name] = more.agreement.max_abs_error
    return best, missed


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
    site: Site,
    layer: LayerEntropy | None,
    states: Mapping[str, Tensor],
    constant: Collection[str],
    missed: Mapping[str, float],
) -> SiteResult:
    """What to say of a site."""
    linear = rectifiers.BY_KIND[site.kind].piecewise_linear
    status, guarantee = "kept", ""
    if site.name in constant:
        status, guarantee, reason = "collapsed", "exact", "its input is constant: no weight that feeds it is left"
    elif layer is None:
        reason = "the report has no counts for it"
    elif site.name in states:
        kinds = ", ".join(f"{layer.count(state)} {state}" for state in ("on", "off", "saturated") if layer.count(state))
        status, guarantee = "collapsed", "empirical" if linear else "approximate"
        reason = f"no sign changed on {layer.samples:,} values per neuron ({kinds})"
    elif site.name in missed:
        reason = f"no sign changed on the data counted, but without it the outputs differ by {missed[site.name]:.3g}"
    elif layer.samples == 0:
        reason = "nothing was counted"
    elif layer.mixed:
        reason = f"{layer.mixed} of {layer.neurons} neurons are mixed"
    else:
        reason = "its parameters are computed, not stored"
    if layer is not None and not linear and status == "kept":
        reason += f"; {site.kind} is not piecewise linear"
    return SiteResult(site.name, site.kind, status, guarantee, reason)
