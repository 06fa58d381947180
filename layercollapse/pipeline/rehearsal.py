"""The end of a run, tried on the network as it comes: what would fail after hours of training fails before them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from layercollapse._util.files import temporary_folder
from layercollapse._util.modes import evaluating
from layercollapse.compiler.driver.api import collapse
from layercollapse.errors import LayerCollapseError
from layercollapse.graph.agreement import compare
from layercollapse.graph.export import reason
from layercollapse.pipeline import checkpoint
from layercollapse.pipeline.batches import Inputs
from layercollapse.pipeline.metric import Metric
from layercollapse.prune.pruner import Pruner
from layercollapse.report.record import Record


def rehearse(
    model: nn.Module,
    pruner: Pruner,
    example: Any,
    *,
    evaluate: Metric,
    test: Metric | None,
    test_inputs: Inputs,
    record: Record,
    folder: Path,
    box: Any,
) -> None:
    """Save, collapse, save again and evaluate: once, with nothing timed, and nothing left in the folder.

    The collapse is by algebra alone, so that it gives the accuracies of the network as it comes.

    Args:
        model: the network, not trained yet.
        pruner: its pruner.
        example: what to capture it with.
        evaluate: called once, with the collapsed network.
        test: the same; None where it is `evaluate`.
        test_inputs: the first batch is compared.
        record: the run's; nothing is written to it.
        folder: the run's.
        box: the range of the inputs.

    Raises:
        LayerCollapseError: something that the end of a run needs does not work; the message names it.
    """
    try:
        json.dumps(asdict(record))
    except (TypeError, ValueError) as error:
        raise LayerCollapseError(f"settings: expected what JSON can hold, got: {error}") from error
    with temporary_folder(folder) as temporary, evaluating(model):
        checkpoint.check(Path(temporary), model, pruner)
        result = collapse(model, example, box=box, cost="macs", captured=pruner.capture)
        result.model.eval()
        result.save(Path(temporary) / "collapsed")
        compare(model, result.model, islice(test_inputs, 1))
        for metric in (evaluate, test):
            if metric is not None:
                _try(metric, result.model)


def _try(metric: Callable[[nn.Module], float], model: nn.Module) -> None:
    assert isinstance(metric, Metric)
    try:
        metric(model)
    except Exception as error:
        if isinstance(error, LayerCollapseError) and str(error).startswith(f"{metric.argument}:"):
            raise
        raise LayerCollapseError(
            f"{metric.argument}: expected a function that works with the collapsed network too, which takes the inputs "
            f"in data by the same names and returns what the model does, and nothing else; it stopped with "
            f"{reason(error)}"
        ) from error
