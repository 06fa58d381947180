"""The schedule: train, then [measure the entropy, prune, train again] until the accuracy is spent, then collapse.

    result = layercollapse.run(model, train=fit, evaluate=top1, data=loader, out="runs/mine")
    result.model              # a shallower, dense, plain nn.Module

Everything a run knows is in its folder after each step, so that it can be stopped, looked at and resumed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layercollapse._util.files import free_folder, locked, writable_folder
from layercollapse._util.ranks import Ranks
from layercollapse.compiler.driver.check import check_mode
from layercollapse.compiler.driver.result import CollapseResult
from layercollapse.errors import LayerCollapseError
from layercollapse.graph.watch import group_of, unwrapped
from layercollapse.pipeline.batches import Inputs
from layercollapse.pipeline.events import Event, Listeners, Progress
from layercollapse.pipeline.history import how_to_go_on
from layercollapse.pipeline.latency import environment
from layercollapse.pipeline.metric import Metric, check_unit, number
from layercollapse.pipeline.processes import from_first, same_weights
from layercollapse.pipeline.rehearsal import rehearse
from layercollapse.pipeline.schedule import Schedule
from layercollapse.prune.budget import GLOBAL, RULES
from layercollapse.prune.pruner import Pruner, checked_share
from layercollapse.report import render as report
from layercollapse.report.record import FILE, Record
from layercollapse.strategies import Strategy, strategy_of

SAMPLES = 16  # on which the pruner looks whether the outputs still vary


@dataclass(frozen=True)
class RunResult:
    """The collapsed model, how it was made, and the record of the run (see `layercollapse.report.record`).

    Of several processes that run together, only the first has how it was made.

    `record.notes` says what is to be known of it: that no pruned network was within the budget, say.
    """

    model: nn.Module
    collapse: CollapseResult
    record: Record
    out: Path

    @property
    def metrics(self) -> dict[str, Any]:
        """What `metrics.json` holds.

        Raises:
            LayerCollapseError: the comparison at the end of the run failed.
        """
        if self.record.failed:
            failed = "; ".join(self.record.failed)
            raise LayerCollapseError(f"metrics: expected a finished comparison, got {failed}; {how_to_go_on(self.out)}")
        return self.record.metrics()


@torch.inference_mode(False)
def run(
    model: nn.Module,
    *,
    train: Callable[..., object],
    evaluate: Callable[[nn.Module], Any],
    data: Iterable[Any],
    example_inputs: Any = None,
    test: Callable[[nn.Module], Any] | None = None,
    test_data: Iterable[Any] | None = None,
    amount: float = 0.5,
    steps: int = 5,
    max_drop: float = 0.5,
    unit: str | None = None,
    rule: Any = "nepenthe",
    strategy: str | Strategy = "prune",
    max_layer_share: float = 1.0,
    train_first: bool = True,
    ignore: Sequence[str] = (),
    box: Any = None,
    mode: str = "exact",
    patterns: bool = False,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    settings: dict[str, Any] | None = None,
    group: Any = None,
    progress: Progress | Sequence[Progress] | None = None,
) -> RunResult:
    """Train, prune step by step, and collapse the shallowest network that stays within the accuracy budget.

    While `train` runs, pruned weights are kept at zero, as by `Pruner.attach`: any training loop works as it is. Ctrl-C
    ends the schedule and collapses what is there; a second Ctrl-C ends at once, with the finished steps on disk.

    Before anything is trained, the end is tried on the network as it comes: its state is saved, it is collapsed, and
    `evaluate` and `test` are called once with the collapsed network. What fails at the end all the same loses nothing:
    an error names the folder and the call that goes on, and where there is a collapsed model it is returned, with a
    warning and `RunResult.record.failed`.

    Args:
        model: gives logits (N, classes), alone or in a dict or a model output of transformers; trained in place, left
            with the chosen sparse weights.
        train: trains the model it is given, in place; called once per step with the original recipe. With an argument
            `checkpoint` it goes on at the epoch where it was interrupted, to the same bits:
            ``for epoch in checkpoint.epochs(10, optimizer=optimizer, scheduler=scheduler)``; see
            `layercollapse.pipeline.training.TrainingCheckpoint`. One with another default than None is left alone.
        evaluate: validation accuracy of the model it is given (not on the test split: it chooses), higher is better;
            any number, NumPy scalar or tensor of one element. It is called with collapsed models too, which take the
            arguments that `example_inputs` has, by the same names, and give the same classes of outputs.
        data: batches of the training split, re-iterable; each an input tensor, a tuple that starts with one, or a
            dict of keyword arguments, of which those of `example_inputs` are taken; without them those that the model
            takes, `labels` only where it must have them. The sign entropy is measured on all of it, on the model's
            device.
        example_inputs: what to capture the model with: a tensor, a tuple of arguments or a dict of them; by default
            the first two samples of `data`.
        test: accuracy for the before/after table; by default `evaluate`.
        test_data: batches on which the collapsed and the sparse model are compared; by default `data`.
        amount: what to remove at each step, as for `Pruner.step`: a fraction of the weights kept, or a number.
        steps: prunings at most. Stops earlier when nothing is left to do, or when the accuracy has been outside
            the budget for two steps in a row (``"collapse"``: six).
        max_drop: accuracy budget, in percentage points below the dense network, whatever the unit.
        unit: of what `evaluate` and `test` return: ``"percent"`` or ``"fraction"`` (0 to 1, recorded times 100). None
            takes percent, and refuses a first number from 0 to 1, before anything is trained.
        rule: name of a budget rule or a function (see `layercollapse.prune.budget`).
        strategy: what a step does before it trains. ``"prune"``: weights go, by the rule. ``"easier"``: the site of
            lowest entropy becomes the identity. ``"tlc"``: the site that the outputs miss least becomes what its batch
            norm says. ``"collapse"``: several sites become the identity, half as many where that loses too much.
            ``"random"``: any site does. Several joined by ``+``, or a `layercollapse.strategies.Strategy`.
        max_layer_share: no site loses more than this share of its weights in a step, as for `Pruner.step`.
        train_first: whether the network is trained before the first pruning; False for one that is trained already.
        ignore: layers never pruned, as for `Pruner`.
        box: the range of the inputs, as for `collapse`: sites that are linear for every input in it are certified.
        mode: ``"exact"``, ``"repad"`` or ``"refit"``, as for `collapse`. Where ``"repad"`` merges layers that differ at
            the border then, or ``"refit"`` fits layers, the collapsed model is trained until it is within the accuracy
            budget, twice at most (with new batch norms behind its convolutions, if the model has any). If it never is,
            fits of an R² of 0.9 and then 0.97 are tried in the place of 0.8, and at last the exact collapse is taken.
        patterns: whether to count the joint sign patterns of every site at every step, for the record and the report.
        seed: the generators of torch, NumPy and Python are seeded with seed + step before each step and its training.
        out: folder for the results; must not hold another run unless `resume`, and no other run may write there
            meanwhile. By default the first of `runs/run`, `runs/run-2`, ... that is not there yet.
        resume: go on after the last finished step of the run in `out` (or after the last epoch, see `train`), begin it
            if there is none, or collapse it again if nothing is left to do.
            `steps` and `max_drop` may be others than before; what is chosen is among the steps whose weights are
            still there: the dense one, the one chosen before, and the last.
        group: the process group of the processes that run together, and all call this; `train` may put the model into
            DistributedDataParallel. None: the default group of torch.distributed, if there is one;
            ``dist.new_subgroups(1)[0]`` is this process by itself. Each measures its own `data`, and the counts are
            added up; `evaluate` and `test` are called on all, and what the first gets counts. The first writes the
            folder, which all must see.
        settings: anything JSON that should be on record beside the arguments above.
        progress: a function that is called with an `Event` at every stage, or several, such as
            `layercollapse.ProgressBar` and the loggers of `layercollapse.integrations.logs`. What has a method `close`
            is closed at the end, however the run ends.

    Raises:
        LayerCollapseError: bad arguments (before anything is trained), or a model that cannot be captured.
        KeyboardInterrupt: stopped before the dense network was trained.
    """
    report.check_installed()
    amount = _plain(amount, "amount")
    steps, seed = _whole(steps, "steps"), _whole(seed, "seed")
    max_drop = number(max_drop, "max_drop", "percentage points, at least 0")
    max_layer_share = checked_share(number(max_layer_share, "max_layer_share", "a fraction in (0, 1]"))
    _check(amount=amount, steps=steps, max_drop=max_drop, rule=rule, train_first=train_first)
    strategy_of(strategy)
    check_unit(unit)
    check_mode(mode)
    told = Listeners(progress)
    ranks = Ranks.of(model, group_of(model) if group is None else group)
    inputs = ranks.together(lambda: Inputs(data, "data", model, example_inputs))
    test_inputs = ranks.together(
        lambda: inputs if test_data is None else Inputs(test_data, "test_data", model, example_inputs)
    )
    same_weights(unwrapped(model), ranks)
    given = ranks.together(lambda: inputs.first(2) if example_inputs is None else example_inputs)
    # What all look at, whatever part of the data each has.
    example, samples = from_first(ranks, lambda: (given, inputs.first(SAMPLES)))
    folder = Path(from_first(ranks, partial(_folder, out, resume=resume)))
    record = Record(
        settings={
            **(settings or {}),
            "amount": amount,
            "steps": steps,
            "max_drop": max_drop,
            "unit": unit or "percent",
            "max_layer_share": max_layer_share,
            "train_first": train_first,
            "rule": rule if isinstance(rule, str) else getattr(rule, "__name__", repr(rule)),
            "strategy": strategy if isinstance(strategy, str) else type(strategy).__name__,
            "ignore": list(ignore),
            "seed": seed,
        },
        environment=environment(next((p.device for p in model.parameters()), torch.device("cpu"))),
        top1_split="test" if test else "validation",
    )
    ranks.check_same("settings", record.settings)
    pruner = Pruner(model, example, ignore=list(ignore), keep_zeros=True, samples=samples, group=group)
    score = Metric(evaluate, "evaluate", unit, ranks)
    schedule = Schedule(
        model=model,
        pruner=pruner,
        train=train,
        evaluate=score,
        test=Metric(test, "test", unit, ranks) if test else score,
        inputs=inputs,
        rule=rule,
        strategy=strategy_of(strategy),
        folder=folder,
        record=record,
        box=box,
        mode=mode,
        patterns=patterns,
        progress=told,
        group=group,
        ranks=ranks,
    )
    with ExitStack() as stack:
        ranks.on_first(lambda: stack.enter_context(locked(folder)))
        stack.enter_context(closing(told))
        schedule.start(resume=resume)
        if len(record.steps) <= steps:
            rehearse(
                model,
                pruner,
                example,
                evaluate=schedule.evaluate,
                test=schedule.test if test else None,
                test_inputs=test_inputs,
                record=record,
                folder=folder,
                box=box,
            )
        schedule.go()
        network, result = schedule.finish(example, test_inputs)
    ranks.wait()  # until the first has written
    record = record if ranks.first else Record.load(folder, "out")
    if record.failed:
        warnings.warn(
            f"the end of the run failed in part: {'; '.join(record.failed)}; the collapsed model is returned, and "
            f"{how_to_go_on(folder)}",
            RuntimeWarning,
            stacklevel=2,
        )
    return RunResult(network, result, record, folder)  # type: ignore[arg-type]  # None on the other processes


def _folder(out: str | Path | None, *, resume: bool) -> str:
    """The folder of a run; text, to be told to other processes."""
    folder = writable_folder(out or free_folder("run"))
    if (folder / FILE).exists() and not resume:
        raise LayerCollapseError(
            f"out: expected a folder without a run in it, got {folder}; resume that run, or choose another folder"
        )
    return str(folder)


def _plain(value: Any, argument: str) -> int | float:
    """A number as JSON has it: a whole one stays whole."""
    plain = number(value, argument)
    whole = value.item() if hasattr(value, "item") else value
    return int(whole) if isinstance(whole, Integral) else plain


def _whole(value: Any, argument: str) -> int:
    plain = number(value, argument, "a whole number")
    if plain != int(plain):
        raise LayerCollapseError(f"{argument}: expected a whole number, got {value!r}")
    return int(value)


def _check(*, amount: float, steps: int, max_drop: float, rule: Any, train_first: bool) -> None:
    if not (0 < amount <= 1 or (isinstance(amount, int) and amount > 1)):
        raise LayerCollapseError(f"amount: expected a fraction up to 1 or a number of weights, got {amount}")
    if steps < 0:
        raise LayerCollapseError(f"steps: expected at least 0, got {steps}")
    if not isinstance(train_first, bool):
        raise LayerCollapseError(f"train_first: expected True or False, got {train_first!r}")
    if not callable(rule) and rule not in (*RULES, GLOBAL):
        raise LayerCollapseError(f"rule: expected {', '.join(RULES)}, {GLOBAL} or a function, got {rule!r}")
    if not max_drop >= 0:
        raise LayerCollapseError(f"max_drop: expected percentage points, at least 0, got {max_drop}")


__all__ = ["Event", "RunResult", "run"]
