"""The schedule: train, then [measure the entropy, prune, train again] until the accuracy is spent, then collapse.

    result = layercollapse.run(model, train=fit, evaluate=top1, data=loader, out="runs/mine")
    result.model              # a shallower, dense, plain nn.Module

Everything a run knows is in its folder after each step, so that it can be stopped, looked at and resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layercollapse import report
from layercollapse.collapse import CollapseResult
from layercollapse.collapse.check import check_mode
from layercollapse.errors import LayerCollapseError
from layercollapse.files import free_folder, writable_folder
from layercollapse.inputs import Inputs
from layercollapse.measure import environment
from layercollapse.prune import Pruner
from layercollapse.record import FILE, Record
from layercollapse.schedule import PATIENCE, Event, Schedule


@dataclass(frozen=True)
class RunResult:
    """The collapsed model, how it was made, and the record of the run (see `layercollapse.record`)."""

    model: nn.Module
    collapse: CollapseResult
    record: Record
    out: Path

    @property
    def metrics(self) -> dict[str, Any]:
        """What `metrics.json` holds."""
        return self.record.metrics()


def run(
    model: nn.Module,
    *,
    train: Callable[[nn.Module], object],
    evaluate: Callable[[nn.Module], float],
    data: Iterable[Any],
    example_inputs: Any = None,
    test: Callable[[nn.Module], float] | None = None,
    test_data: Iterable[Any] | None = None,
    amount: float = 0.5,
    steps: int = 5,
    max_drop: float = 0.5,
    rule: Any = "nepenthe",
    ignore: Sequence[str] = (),
    box: Any = None,
    mode: str = "exact",
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    settings: dict[str, Any] | None = None,
    progress: Callable[[Event], object] | None = None,
) -> RunResult:
    """Train, prune step by step, and collapse the shallowest network that stays within the accuracy budget.

    While `train` runs, pruned weights are put back to zero after every step of every torch optimizer that
    holds them: any training loop works as it is. Ctrl-C ends the schedule and collapses what is there; a
    second Ctrl-C ends at once, with the finished steps on disk.

    Args:
        model: gives logits (N, classes), alone or in a dict or a model output of transformers; trained in place, left
            with the chosen sparse weights.
        train: trains the model it is given, in place; called once per step with the original recipe.
        evaluate: validation accuracy in percent of the model it is given (not on the test split: it chooses).
        data: batches of the training split, re-iterable; each an input tensor, a tuple that starts with one, or a
            dict of keyword arguments (labels and other keys that the model does not take are left out). The sign
            entropy is measured on all of it, on the model's device.
        example_inputs: what to capture the model with: a tensor, a tuple of arguments or a dict of them; by default
            the first two samples of `data`.
        test: accuracy in percent for the before/after table; by default `evaluate`.
        test_data: batches on which the collapsed and the sparse model are compared; by default `data`.
        amount: what to remove at each step, as for `Pruner.step`: a fraction of the weights kept, or a number.
        steps: prunings at most. Stops earlier when nothing can be pruned any more, or when the accuracy has
            been outside the budget for `PATIENCE` steps in a row.
        max_drop: accuracy budget, in percentage points below the dense network on the scale of `evaluate`.
        rule: name of a budget rule or a function (see `layercollapse.budget`).
        ignore: layers never pruned, as for `Pruner`.
        box: the range of the inputs, as for `collapse`: sites that are linear for every input in it are certified.
        mode: ``"exact"`` or ``"repad"``, as for `collapse`. Where ``"repad"`` merges layers that differ at the border
            then, the collapsed model is trained once more, and taken if it is within the accuracy budget; otherwise
            the exact collapse is.
        seed: torch is seeded with seed + step before each training.
        out: folder for the results; must not hold another run unless `resume`. By default the first of `runs/run`,
            `runs/run-2`, ... that is not there yet.
        resume: go on after the last finished step of the run in `out`, or collapse it again if none is left to do.
            `steps` and `max_drop` may be others than before; what is chosen is among the steps whose weights are
            still there: the dense one, the one chosen before, and the last.
        settings: anything JSON that should be on record beside the arguments above.
        progress: called at every stage.

    Raises:
        LayerCollapseError: bad arguments (before anything is trained), or a model that cannot be captured.
        KeyboardInterrupt: stopped before the dense network was trained.
    """
    report.check_installed()
    _check(amount=amount, steps=steps, max_drop=max_drop)
    check_mode(mode)
    inputs = Inputs(data, "data", model)
    test_inputs = inputs if test_data is None else Inputs(test_data, "test_data", model)
    example = inputs.first(2) if example_inputs is None else example_inputs
    folder = writable_folder(out or free_folder("run"))
    if (folder / FILE).exists() and not resume:
        raise LayerCollapseError(
            f"out: expected a folder without a run in it, got {folder}; resume that run, or choose another folder"
        )
    record = Record(
        settings={
            **(settings or {}),
            "amount": amount,
            "steps": steps,
            "max_drop": max_drop,
            "rule": rule if isinstance(rule, str) else getattr(rule, "__name__", repr(rule)),
            "ignore": list(ignore),
            "seed": seed,
        },
        environment=environment(next((p.device for p in model.parameters()), torch.device("cpu"))),
        top1_split="test" if test else "validation",
    )
    schedule = Schedule(
        model=model,
        pruner=Pruner(model, example, ignore=list(ignore), keep_zeros=True),
        train=train,
        evaluate=evaluate,
        test=test or evaluate,
        inputs=inputs,
        rule=rule,
        folder=folder,
        record=record,
        box=box,
        mode=mode,
        progress=progress or (lambda event: None),
    )
    if resume and (folder / FILE).exists():
        schedule.resume()
    schedule.go()
    result = schedule.finish(example, test_inputs)
    return RunResult(result.model, result, record, folder)


def _check(*, amount: float, steps: int, max_drop: float) -> None:
    if not (0 < amount <= 1 or (isinstance(amount, int) and amount > 1)):
        raise LayerCollapseError(f"amount: expected a fraction up to 1 or a number of weights, got {amount}")
    if steps < 0:
        raise LayerCollapseError(f"steps: expected at least 0, got {steps}")
    if not max_drop >= 0:
        raise LayerCollapseError(f"max_drop: expected percentage points, at least 0, got {max_drop}")


__all__ = ["PATIENCE", "Event", "RunResult", "run"]
