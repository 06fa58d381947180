"""From a pruned network to a shallower dense one.

    result = layercollapse.collapse(model, example_inputs, report, data=batches)
    result.model            # a plain nn.Module
    print(result.explain())

The steps: `frontend.lower` (graph to records), `driver.candidates` (which sites, by counts, constants and bounds),
`driver.search` (which of them together; `driver.bisect`: which layers stay as they came), `passes`, `backend.emit`
(records to modules), `agreement` (compare on data), `tuning` (the fastest variant of every region, and of the whole),
`backend.shape_guard` (input sizes), `driver.explain` (what was done and why).
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import nn

from layercollapse._util.devices import on_cpu
from layercollapse._util.modes import evaluating
from layercollapse._util.tensors import check_values
from layercollapse.compiler.analysis.bounds.propagate import Box
from layercollapse.compiler.analysis.cost import Summary, captured_depth, summarize
from layercollapse.compiler.analysis.obstacles import Kept
from layercollapse.compiler.analysis.outline import outline
from layercollapse.compiler.backend.contract import keep_contract
from layercollapse.compiler.backend.emit import emit
from layercollapse.compiler.backend.serialize import load, save
from layercollapse.compiler.backend.shape_guard import settle, with_values
from layercollapse.compiler.driver.candidates import candidates, entropies
from layercollapse.compiler.driver.check import (
    check_buffers,
    check_example,
    check_options,
    check_parameters,
    check_refit,
    check_statistics,
)
from layercollapse.compiler.driver.gather import Moved, moved, on_first, sharded
from layercollapse.compiler.driver.result import CollapseResult, SiteResult
from layercollapse.compiler.driver.search import Search
from layercollapse.compiler.driver.verdicts import Verdicts
from layercollapse.compiler.frontend.lower import lower
from layercollapse.compiler.passes.linearize import bending_sites
from layercollapse.compiler.tuning.timer import Latency
from layercollapse.entropy.report import EntropyReport
from layercollapse.errors import LayerCollapseError
from layercollapse.graph.agreement import Agreement, compare
from layercollapse.graph.capture import Capture, checked_capture
from layercollapse.graph.export import call_arguments
from layercollapse.graph.prunable import prunable
from layercollapse.graph.watch import unwrapped

__all__ = ["Agreement", "CollapseResult", "SiteResult", "Summary", "collapse", "compare", "load", "save"]


def collapse(
    model: nn.Module,
    example_inputs: Any,
    report: EntropyReport | None = None,
    *,
    data: Iterable[Any] | None = None,
    box: tuple[Any, Any] | Box | None = None,
    mode: str = "exact",
    tolerance: float = 1e-4,
    cost: str = "latency",
    partial: bool = False,
    min_r2: float = 0.8,
    captured: Capture | None = None,
) -> CollapseResult:
    """Remove the rectifiers that never bend, and merge what is left between the others.

    Sites that algebra proves linear collapse whatever the report says (all their weights are pruned, say), and so do
    those that interval bounds prove linear over the box; the others where the report has no mixed neuron. Where these
    miss the tolerance on the data they are tried one by one, and those that miss it are kept. Where layers miss it that
    algebra merges or folds exactly (float rounding: large outputs, constants that nearly overflow, half precision),
    those are found that do, and stay as they came. The model is not changed.

    The collapsed model takes inputs of the sizes that the model takes, in any batch. Where the model computes with
    sizes in Python (the kernel of a pooling from ``x.shape``, say), the graph has those of the example; that is found
    by one sample of other sizes, twice, and inputs of other sizes are an error then (`CollapseResult.fixed_sizes`).
    What its Python decides by the size of the batch is decided as for the example.
    So are inputs that are no tensors (numbers, texts, None) where they are not those of the example.

    A model whose parameters are sharded over processes (FSDP2, DTensors) is gathered, one tensor at a time, on the CPU
    of the first of them, where all of this happens, timing included. All processes call this together; the others wait,
    and get None. What fails there raises on all.

    Args:
        model: the trained, pruned model; it must be what `torch.export` can capture.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        report: of an `EntropyProbe` on this model, with these weights; None uses algebra alone.
        data: batches on which the collapsed model must agree with the model (a tensor, ``(x, ...)`` tuples, or
            dicts); without them it is compared on the example inputs.
        box: lowest and highest value of the input, numbers or tensors (C,) for an input (N, C, ...): the range of
            normalized pixels, for instance; a dict of these by input name for a model with several. Sites that are
            linear for every input in the box are certified. None: nothing is assumed of the input.
        mode: ``"exact"``: two convolutions that no single one can replace at the border stay in sequence, without
            the rectifier between them. ``"repad"``: they may merge, where that pays, by moving the padding of the
            second to the first; the outputs then differ, as the result says, until the model is trained once more.
            The tolerance judges the same sites with the border as it was.
            ``"refit"``: what is left between two rectifiers, where that is several layers, is replaced by the cheapest
            that will do: a convolution of a small kernel on each tensor read, or two of a lower rank, fitted on `data`
            by least squares. The tolerance judges the exact collapse, which this starts from; what the fitted layers
            change, `CollapseResult` measures, and the model is to be trained once more.
        tolerance: largest absolute difference of any output that is accepted: what comes out keeps it on the data.
            With outputs that vary little it is less, by output tensor: ``min(1, 100 * spread) * tolerance``, where
            ``spread`` is the largest difference of any entry between two samples of the data; or ``64 * eps * scale``
            where that is more (still at most the tolerance), ``eps`` that of the dtype, ``scale`` the largest magnitude
            of the output, which is rounding. A spread below that is of a constant: ``min(1, scale) * tolerance``. One
            sample alone has no spread: then the tolerance is all.
        cost: what decides how the collapsed model is written. ``"latency"``: time, measured on the model's device
            with the example inputs, which should have the batch size of later use: of every region that there is more
            than one way to write, and of the whole, the model that came among them, in turns. ``"macs"``:
            multiply-accumulates, and nothing is timed.
        partial: whether neurons that were off (or saturated) on the data of the report are removed from sites with
            others that are mixed. Those that algebra, or the box, proves to be are in any case: 161 of 163 in a pruned
            MobileNetV2, so that the data gain little for the risk.
        min_r2: with ``mode="refit"``, the share of the variance of its outputs (R²), on samples held out, that fitted
            layers have to explain to replace a region.
        captured: the model's capture with these example inputs, if there is one (`Pruner.capture`): `torch.export`
            may take as long as all the rest. Weights may have changed since, and nothing else: no module, no setting.

    Returns:
        The collapsed model and what is known of it.

    Raises:
        LayerCollapseError: an argument is not as described; the report is of another model; a forward pass changes a
            buffer that the outputs depend on; or the outputs differ by more than the tolerance with nothing removed or
            merged.
    """
    check_options(mode, tolerance, cost, partial)
    check_refit(mode, min_r2, data)
    check_example(example_inputs)
    model = unwrapped(model)
    options: dict[str, Any] = {
        "box": box,
        "mode": mode,
        "tolerance": tolerance,
        "cost": cost,
        "partial": partial,
        "min_r2": min_r2,
    }
    if sharded(model):
        here = captured if next(model.parameters()).is_cpu else None  # that of another device does not fit
        batches = None if data is None else Moved(data)
        result = on_first(
            model,
            lambda: collapse(model, moved(example_inputs), report, data=batches, captured=here, **options),
        )
        return cast(CollapseResult, result)  # that it may be None is for the few who have sharded models to ask
    check_values(model, example_inputs)
    # In evaluation mode throughout: the weights are those of the graph, also of layers that merge adapters then.
    with torch.inference_mode(False), evaluating(model):
        check_parameters(model)
        captured = checked_capture(model, example_inputs, captured)
        with on_cpu():
            return _collapsed(model, captured, example_inputs, report, data, **options)


def _collapsed(
    model: nn.Module,
    captured: Capture,
    example_inputs: Any,
    report: EntropyReport | None,
    data: Iterable[Any] | None,
    *,
    box: tuple[Any, Any] | Box | None,
    mode: str,
    tolerance: float,
    cost: str,
    partial: bool,
    min_r2: float,
) -> CollapseResult:
    """What `collapse` does with a model in evaluation mode."""
    check_statistics(captured, model)
    check_buffers(captured)
    args, kwargs = call_arguments(example_inputs)
    if len(captured.inputs) != len(args) + len(kwargs):
        raise LayerCollapseError(
            f"example_inputs: expected every input of the model as an argument of its own, got {len(captured.inputs)} "
            f"values nested in {len(args) + len(kwargs)} arguments; wrap the model in one that takes them apart"
        )
    layers = entropies(captured, report)
    batches = [(example_inputs,)] if data is None else data
    if isinstance(batches, Iterator):
        batches = list(batches)  # an iterator would be empty at the second comparison
    net = lower(captured, model)
    read = bending_sites(net)
    proposed = candidates(captured, net, report, box, partial)

    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    costs = Latency(device) if cost == "latency" else None
    search = Search(model, captured, net, proposed, batches, example_inputs, tolerance, device, costs, mode, min_r2)
    outcome = search.run()
    if outcome.missed or outcome.rolled_back:
        gc.collect()  # graphs refer to themselves: what was tried last would wait to be freed
    best = outcome.form
    verdicts = Verdicts(captured, proposed, outcome, read, layers)
    sites = tuple(verdicts.of(site) for site in captured.sites)
    exact = not best.repadded and not outcome.refitted and {site.guarantee for site in sites} <= {"", "exact"}
    collapsed, fixed = settle(model, best.model, example_inputs, exact, lambda: emit(net.copy(), device))
    return CollapseResult(
        model=keep_contract(with_values(collapsed, example_inputs), model, example_inputs),
        sites=sites,
        kept_layers=(*(Kept(pair, reason) for pair, reason in best.kept.items()), *outcome.rolled_back),
        before=summarize(model, example_inputs, captured_depth(captured)),
        after=summarize(collapsed, example_inputs, best.depth),
        max_abs_error=outcome.agreement.max_abs_error,
        spread=outcome.agreement.spread,
        hardly_varies=outcome.agreement.hardly_varies,
        same_predictions=outcome.agreement.same,
        samples=outcome.agreement.samples,
        example_inputs=example_inputs,
        form=best.name,
        latency=outcome.times,
        regions=outcome.choices,
        repadded=best.repadded,
        refitted=outcome.refitted,
        unshared=tuple(w.rpartition(".")[0] or w for w, n in net.calls().items() if n > max(1, best.calls.get(w, 0))),
        parts_before=outline(net, {site.node: site.name for site in captured.sites}),
        parts_after=best.parts,
        fixed_sizes=fixed,
        unfed=prunable(model, captured).unfed,
    )
