"""The end of a run: collapse the chosen sparse model, save it, and measure it against what it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from layercollapse._util.files import temporary_folder, write_text
from layercollapse._util.ranks import Ranks
from layercollapse.compiler.backend.serialize import load
from layercollapse.compiler.driver.api import collapse
from layercollapse.compiler.driver.result import CollapseResult
from layercollapse.entropy.probe import EntropyReport
from layercollapse.errors import LayerCollapseError
from layercollapse.graph.agreement import compare
from layercollapse.graph.export import reason
from layercollapse.graph.linear_sites import rectified
from layercollapse.pipeline import checkpoint
from layercollapse.pipeline.latency import BATCH_SIZES, file_mib, latency, repeat_to
from layercollapse.pipeline.metric import Metric
from layercollapse.pipeline.norms import has_norms, with_norms, without_norms
from layercollapse.pipeline.processes import from_first
from layercollapse.pipeline.states import seed
from layercollapse.pipeline.training import TrainingCheckpoint, call
from layercollapse.report.record import Record, Region, Side, Verdict

# R² that fitted layers must have: the next where the network is not good enough with one. With 0.8 a ResNet-18
# without 14 of 17 sites (55,000 Fashion-MNIST images) lost more than half a point in three trainings of 4 epochs.
FITS = (0.8, 0.9, 0.97)
# Of a collapsed network that is not exact: it has a fraction of the layers, so two cost less than the last step did.
TRAININGS = 2
MODEL_FILE = "model.safetensors"
ENTROPY_FILE = "entropy.json"


def collapse_and_compare(
    model: nn.Module,
    example: Any,
    report: EntropyReport,
    *,
    data: Iterable[Any],
    test_data: Iterable[Any],
    test: Callable[[nn.Module], float],
    record: Record,
    folder: Path,
    settle: Callable[[nn.Module], bool] | None = None,
    ranks: Ranks | None = None,
    **options: Any,
) -> tuple[nn.Module, CollapseResult | None]:
    """Collapse a sparse model and write the collapsed model and the completed record to the run's folder.

    Args:
        model: the sparse model, in evaluation mode.
        example: what to capture it with: a tensor, a tuple of arguments or a dict of them.
        report: its sign entropy on the training split.
        data: re-iterable input batches of the training split, to verify merges on.
        test_data: re-iterable input batches to compare the two models on.
        test: accuracy in percent.
        record: completed in place; its `chosen` and `dense_top1` must be there.
        folder: the run's folder.
        settle: trains a model whose merges changed a border (``mode="repad"``), or that has fitted layers
            (``mode="refit"``), in place, and says whether its accuracy is good enough; if not, the exact
            collapse is taken. None leaves such a model untrained. Of a model with batch norms it is given one with new
            ones, which are folded when it is trained.
        ranks: the processes that call this together. The first collapses, compares and writes; all train and test.
        options: for `collapse`, for example ``tolerance``.

    Returns:
        The collapsed model, and on the first process the collapse. What fails after it is in the record's `failed`, and
        what could not be measured is not there.
    """
    ranks = ranks or Ranks()
    assert record.chosen is not None
    assert record.dense_top1 is not None
    record.failed, record.before, record.after, record.max_abs_error, record.retrained = [], None, None, None, 0
    network, result = _good_enough(
        model,
        partial(collapse, model, example, report, data=data, **options),
        data,
        settle,
        record=record,
        folder=folder,
        ranks=ranks,
    )
    network.eval()
    if result is not None:
        _write(model, result, report, test_data, record=record, folder=folder)
    with _noted(record, "measuring the collapsed model"):
        top1 = test(network)
        if result is not None:
            _measure(model, result, example, top1=top1, record=record, folder=folder)
    return network, result


def _write(
    model: nn.Module,
    result: CollapseResult,
    report: EntropyReport,
    test_data: Iterable[Any],
    *,
    record: Record,
    folder: Path,
) -> None:
    """Save the collapsed model, compare it with the sparse one, and put on record how it came about."""
    with _noted(record, "saving the collapsed model"):
        result.save(folder)
        write_text(folder / ENTROPY_FILE, report.to_json())
    with _noted(record, "comparing on test_data"):
        agreement = compare(model, result.model, test_data)
        record.max_abs_error = agreement.max_abs_error
        record.identical, record.compared = agreement.same, agreement.samples
    record.repadded, record.refitted = list(result.repadded), list(map(str, result.refitted))
    record.forms, record.form = (
        {name.value: ms for name, ms in result.latency.items()},
        result.form.value,
    )
    record.parts_before, record.parts_after = list(result.parts_before), list(result.parts_after)
    record.regions = [
        Region(list(region.layers), region.variant.value, {variant.value: ms for variant, ms in region.times.items()})
        for region in result.regions
    ]
    record.verdicts = [Verdict(site.name, site.kind, site.status, site.guarantee, site.reason) for site in result.sites]


def _good_enough(
    model: nn.Module,
    collapsed: Callable[..., CollapseResult],
    data: Iterable[Any],
    settle: Callable[[nn.Module], bool] | None,
    *,
    record: Record,
    folder: Path,
    ranks: Ranks,
) -> tuple[nn.Module, CollapseResult | None]:
    """The first collapse that is exact, or good enough once it is trained.

    Fits have to explain more of the variance each time. At last the exact collapse is taken.
    """
    tried: list[list[str]] = []
    for least in FITS:
        network, result, replaced = _everywhere(partial(collapsed, min_r2=least), folder, ranks)
        if settle is None or not replaced:
            return network, result
        if replaced in tried:
            continue
        tried.append(replaced)
        good: bool | None = None
        with _noted(record, "training the collapsed model"):
            network, result, good = _settled(model, network, result, data, settle)
        if good:
            return network, result
        if good is None or not from_first(ranks, partial(_refitted, result)):  # what fails once would fail again
            break
    network, result, _ = _everywhere(partial(collapsed, mode="exact"), folder, ranks)
    return network, result


def _refitted(result: CollapseResult | None) -> bool:
    return result is not None and bool(result.refitted)


def _everywhere(
    collapsed: Callable[[], CollapseResult], folder: Path, ranks: Ranks
) -> tuple[nn.Module, CollapseResult | None, list[str]]:
    """A collapse on the first process; its model on all, and what was replaced in it that was no rectifier."""
    result: CollapseResult | None = None

    def first() -> list[str]:
        nonlocal result
        result = collapsed()
        return [*result.repadded, *(f"{one.layers} {one.by}" for one in result.refitted)]

    replaced = from_first(ranks, first)
    if ranks.alone:
        assert result is not None
        return result.model, result, replaced
    with ExitStack() as stack:
        made = from_first(ranks, lambda: stack.enter_context(temporary_folder(folder)))
        ranks.together(lambda: None if result is None else result.save(made))
        network = result.model if result is not None else load(made)
        ranks.wait()  # before the folder goes
    return network, result, replaced


def _settled(
    model: nn.Module,
    network: nn.Module,
    result: CollapseResult | None,
    data: Iterable[Any],
    settle: Callable[[nn.Module], bool],
) -> tuple[nn.Module, CollapseResult | None, bool]:
    """The collapse trained, and whether it is good enough."""
    if not has_norms(model) or not isinstance(network, fx.GraphModule):
        return network, result, settle(network)
    trained = with_norms(network, data)
    good = settle(trained)
    folded = without_norms(trained)
    if result is not None:
        after = replace(result.after, parameters=sum(parameter.numel() for parameter in folded.parameters()))
        result = replace(result, model=folded, after=after)
    return folded, result, good


def settled(
    model: nn.Module, *, train: Callable[..., object], evaluate: Metric, record: Record, ranks: Ranks | None = None
) -> bool:
    """Train a collapsed model in place until it is within the accuracy budget, `TRAININGS` times at most.

    Whether it is. The record's `retrained` counts the trainings.
    """
    limit = record.steps[0].top1_validation - record.settings["max_drop"]
    for _ in range(TRAININGS):
        seed(record.settings["seed"] + len(record.steps) + record.retrained)
        model.train()
        call(train, model, TrainingCheckpoint(model, ranks=ranks))
        model.eval()
        record.retrained += 1
        if evaluate(model) >= limit:
            return True
    return False


def _measure(
    model: nn.Module,
    result: CollapseResult,
    example: Any,
    *,
    top1: float,
    record: Record,
    folder: Path,
) -> None:
    """Complete the record with both sides of the comparison, and write it."""
    assert record.chosen is not None
    assert record.dense_top1 is not None
    timings: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for batch_size in BATCH_SIZES:
        try:
            with rectified(model):
                pair = latency([model, result.model], repeat_to(example, batch_size))
        except (RuntimeError, ValueError, LayerCollapseError):  # a model that takes one size of batch alone
            continue
        for side, milliseconds in zip(timings, pair, strict=True):
            side[str(batch_size)] = milliseconds
    samples = next(
        len(x) for x in pytree.tree_leaves(example) if isinstance(x, Tensor) and x.ndim
    )  # the summaries count the whole example batch
    # The sparse model stands in for the dense one where zeros make no difference: shape, size and time.
    before = Side(
        top1=record.dense_top1,
        depth=result.before.depth,
        parameters=result.before.parameters,
        macs=result.before.macs // samples,
        file_mib=file_mib(checkpoint.path(folder, record.chosen)),
        latency_ms=timings[0],
    )
    after = Side(
        top1=top1,
        depth=result.after.depth,
        parameters=result.after.parameters,
        macs=result.after.macs // samples,
        file_mib=file_mib(folder / MODEL_FILE),
        latency_ms=timings[1],
    )
    record.before, record.after = before, after
    record.save(folder)


@contextmanager
def _noted(record: Record, what: str) -> Iterator[None]:
    """Put an error on record: there is a collapsed model by now, and it is not to be lost."""
    try:
        yield
    except Exception as error:
        record.failed.append(f"{what} stopped with {reason(error)}")
