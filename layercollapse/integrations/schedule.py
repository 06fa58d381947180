"""What the callbacks of trainers share: prune at the ends of epochs, keep zeros, collapse at the end."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from layercollapse._util.modes import evaluating
from layercollapse.compiler.driver.api import collapse
from layercollapse.compiler.driver.result import CollapseResult
from layercollapse.entropy.probe import EntropyReport
from layercollapse.errors import LayerCollapseError
from layercollapse.pipeline.batches import Inputs, measure_entropy
from layercollapse.prune.pruner import Pruner, StepResult
from layercollapse.prune.zeros import ZerosKept


class PruningSchedule:
    """The settings and the state of a training that prunes.

    Args:
        amount: what to remove at each step, as for `Pruner.step`: a fraction of the weights kept, or a number.
        rule: the budget rule, as for `Pruner.step`.
        every: epochs of training between two steps, and at least so many after the last.
        steps: steps at most; None: as many as the epochs permit.
        ignore: layers never pruned, as for `Pruner`.
        max_layer_share: no site loses more than this share of its weights in a step.
        data: batches on which entropies are measured and the collapsed model is compared; None takes the trainer's
            training data, in order.
        batches: how many of them at most; None: all.
        example_inputs: what to capture the model with; None takes the first two samples of the data.
        out: folder for the collapsed model; None writes none.
        collapse: further arguments of `layercollapse.collapse`, such as ``{"mode": "repad"}``.

    Attributes:
        pruner: the `Pruner`, from the start of the training on.
        reports: the entropies, one report for each time they were measured.
        pruned: the results of the steps of this process.
        result: the `CollapseResult`, after the training.
    """

    def __init__(
        self,
        amount: float = 0.5,
        *,
        rule: Any = "nepenthe",
        every: int = 1,
        steps: int | None = None,
        ignore: Sequence[str] = (),
        max_layer_share: float = 1.0,
        data: Iterable[Any] | None = None,
        batches: int | None = None,
        example_inputs: Any = None,
        out: str | os.PathLike[str] | None = None,
        collapse: dict[str, Any] | None = None,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise LayerCollapseError(f"every: expected a number of epochs, at least 1, got {every!r}")
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 0):
            raise LayerCollapseError(f"steps: expected a number of steps, at least 0, got {steps!r}")
        self._step = {"amount": amount, "rule": rule, "max_layer_share": max_layer_share}
        self._every, self._steps, self._ignore = every, steps, list(ignore)
        self._data, self._batches, self._example = data, batches, example_inputs
        self._out, self._collapse = None if out is None else Path(out), dict(collapse or {})
        self._inputs: list[Any] = []
        self._kept: ZerosKept | None = None
        self.pruner: Pruner | None = None
        self.reports: list[EntropyReport] = []
        self.pruned: list[StepResult] = []
        self.result: CollapseResult | None = None

    def begin(self, model: nn.Module, loader: Any, *, zeros: bool = False) -> Pruner:
        """Capture the model, and keep zeros from here on.

        Args:
            model: what is trained.
            loader: the trainer's training data, for where no data was given.
            zeros: whether weights that are zero count as pruned, as in a training that goes on.
        """
        given = self._data if self._data is not None else _in_order(loader)
        if given is None:
            raise LayerCollapseError("data: expected batches to measure entropies on, and the trainer has none")
        with torch.random.fork_rng(devices=[]):
            inputs = Inputs(list(islice(given, self._batches)), "data", model, self._example)
        if self._example is None:
            self._example = inputs.first(2)
        self._inputs = list(inputs)
        if self._kept is not None:  # of a training that was broken off
            self._kept.remove()
        self.pruner = Pruner(model, self._example, ignore=self._ignore, keep_zeros=not zeros)
        self._kept = self.pruner.attach()
        return self.pruner

    def epoch_ends(self, done: int, total: int | None) -> StepResult | None:
        """Prune, if a step is due.

        Args:
            done: epochs finished since the training began, also by another process before.
            total: epochs that the training takes in all; None: not known.
        """
        assert self.pruner is not None
        due = done % self._every == 0 and (total is None or done + self._every <= total)
        if not due or (self._steps is not None and done // self._every > self._steps):
            return None
        step = self.pruner.step(self._measured(), **self._step)
        self.pruned.append(step)
        return step

    def end(self, *, main: bool = True) -> None:
        """Collapse the model as it is now, and write what came of it: on the main process."""
        assert self.pruner is not None
        assert self._kept is not None
        self._kept.remove()
        report = self._measured()  # by all processes together
        if not main:
            return
        model, captured = self.pruner.model, self.pruner.capture
        with evaluating(model):
            fits = captured.misfit(model, self._example) is None
            self.result = collapse(
                model,
                self._example,
                report,
                data=self._inputs,
                **{"captured": captured if fits else None, **self._collapse},
            )
        if self._out is not None:
            self.result.save(self._out)

    def _measured(self) -> EntropyReport:
        assert self.pruner is not None
        with evaluating(self.pruner.model):
            report = measure_entropy(self.pruner.model, self._inputs)
        self.reports.append(report)
        return report


def _in_order(loader: Any) -> Iterable[Any] | None:
    """A trainer's data loader without shuffling, and without what a trainer counts on it."""
    dataset = getattr(loader, "dataset", None)
    if dataset is None:
        return loader if isinstance(loader, Iterable) else None
    size = getattr(loader, "batch_size", None) or getattr(loader, "total_batch_size", None) or 1
    return DataLoader(dataset, batch_size=size, collate_fn=loader.collate_fn)
