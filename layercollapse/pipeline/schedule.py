"""The state of a run and its moves: step by step to the choice, and the collapse at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from layercollapse._util.files import clear
from layercollapse._util.ranks import Ranks
from layercollapse.compiler.driver.result import CollapseResult
from layercollapse.entropy.probe import EntropyReport
from layercollapse.errors import LayerCollapseError
from layercollapse.graph.export import reason
from layercollapse.pipeline import checkpoint, training
from layercollapse.pipeline.batches import Inputs, measure_entropy
from layercollapse.pipeline.events import Event
from layercollapse.pipeline.finish import collapse_and_compare, settled
from layercollapse.pipeline.history import check_settings, choose, raise_with_the_way_on, taken
from layercollapse.pipeline.metric import Metric
from layercollapse.pipeline.processes import from_first
from layercollapse.pipeline.states import seed
from layercollapse.pipeline.training import TrainingCheckpoint, call, interrupted, put_back
from layercollapse.prune.linearize import Becomes, lines_of
from layercollapse.prune.pruner import Pruner, StepResult
from layercollapse.report.record import FILE, Pieces, Record, Step, histogram
from layercollapse.report.render import write_html
from layercollapse.strategies import Situation, Strategy, with_lines


@dataclass
class Schedule:
    """A run under way; its state is in the record and in the checkpoints, which are always in step."""

    model: nn.Module
    pruner: Pruner
    train: Callable[..., object]
    evaluate: Metric
    test: Metric
    inputs: Inputs
    rule: Any
    strategy: Strategy
    folder: Path
    record: Record
    progress: Callable[[Event], object]
    box: Any = None
    mode: str = "exact"
    patterns: bool = False
    emptied: int = 0  # sites that lost the last of their weights before the next training
    guarded: Sequence[str] = ()  # sites at which that kept weights
    interrupted: dict[str, Any] | None = None  # the state of a training that was not finished
    group: Any = None
    ranks: Ranks = field(default_factory=Ranks)  # of the group: the processes that train together; the first writes

    def __post_init__(self) -> None:
        self._checkpoints = self.folder / checkpoint.FOLDER

    def start(self, *, resume: bool) -> None:
        """Clear away what killed processes left half written; take over what there is of a run that goes on."""
        for folder in (self.folder, self._checkpoints):
            self.ranks.on_first(partial(clear, folder))
        if resume:
            self._resume()
        else:
            self.ranks.on_first(lambda: training.clear(self._checkpoints))

    def _resume(self) -> None:
        """Take over the steps and the last weights of the run in the folder."""
        record = self.record
        if (self.folder / FILE).exists():
            earlier = Record.load(self.folder, "out")
            check_settings(record.settings, earlier.settings, self.folder)
            record.sites, record.channels = earlier.sites, earlier.channels
            record.steps, record.dense_top1 = earlier.steps, earlier.dense_top1
        if record.steps:
            self.model.train()  # the mode in which weights are saved
            self.evaluate.unit = self.test.unit = record.settings["unit"]
            checkpoint.load(self.folder, record.steps[-1].step, self.model, self.pruner)
        self.interrupted = interrupted(self._checkpoints, len(record.steps), self.ranks)
        if self.interrupted is not None:
            check_settings(record.settings, self.interrupted["extra"]["settings"], self.folder)

    def go(self) -> None:
        """Take the steps; returns when they are done, when going on is pointless, or at Ctrl-C."""
        record = self.record
        try:
            goes_on = bool(record.steps) and self.interrupted is None
            report = self._measure(record.steps[-1].step) if goes_on else None
            self.model.train()  # which layers that merge adapters for evaluation are pruned and saved in
            while len(record.steps) <= record.settings["steps"] and not self._pointless():
                if report is not None and not self._act(report):
                    break
                report = self._step(len(record.steps))
        except KeyboardInterrupt:
            if not record.steps or not self.ranks.alone:  # others may be in a step from which they wait for this one
                raise
            record.interrupted = True
            record.stopped = f"interrupted in step {len(record.steps)}"
            self._tell("interrupted", len(record.steps))
        except Exception as error:
            if not record.steps:
                raise
            raise_with_the_way_on(error, self.folder)

    def _act(self, report: EntropyReport) -> bool:
        """Do what the strategy proposes; False: it ends the run."""
        self._seed(len(self.record.steps))
        pruned: StepResult | None = None
        try:
            action = self.ranks.together(partial(self.strategy.propose, self._situation(report)))
            if action is None or action.empty:
                self.record.stopped = "nothing left to make linear"
                return False
            if action.back:
                self.model.train()
                checkpoint.load(self.folder, self._choice(), self.model, self.pruner)
            if action.linear:
                self.pruner.linearize(self._become(action.linear))
            if action.prune is not None:
                if action.linear:
                    report = self._measure(len(self.record.steps))
                pruned = self.pruner.step(report, **action.prune)
        except LayerCollapseError as error:
            if len(self.record.steps) == 1:
                raise  # not even one step: the caller should know
            self.record.stopped = str(error)
            return False
        if pruned is not None and not (any(pruned.removed.values()) or action.linear or action.rest):
            self.record.stopped = "nothing left to prune"
            return False
        self.emptied, self.guarded = (len(pruned.emptied), list(pruned.floors)) if pruned else (0, [])
        return True

    def _become(self, linear: Mapping[str, Becomes]) -> Mapping[str, Becomes]:
        """What sites become; on the first of several processes, as it may depend on the data."""
        sites = self.ranks.together(partial(with_lines, linear, self.model, self.pruner, self.inputs))
        if self.ranks.alone:
            return sites
        lines = lines_of(self.pruner.capture, sites)
        return from_first(self.ranks, lambda: {name: line.tensor() for name, line in lines.items()})

    def _situation(self, report: EntropyReport) -> Situation:
        pruning = {name: self.record.settings[name] for name in ("amount", "max_layer_share")}
        return Situation(
            report=report,
            pruner=self.pruner,
            model=self.model,
            data=self.inputs,
            evaluate=self.evaluate,
            steps=taken(self.record, self._choice()),
            prune={**pruning, "rule": self.rule},
            seed=self.record.settings["seed"],
        )

    def _step(self, number: int) -> EntropyReport:
        started, record = time.perf_counter(), self.record
        self._tell("train", number)
        if number or record.settings["train_first"]:
            started -= self._train(number)
        report = self._measure(number)
        top1 = self.evaluate(self.model)
        if number == 0:
            record.dense_top1 = self.test(self.model)
            record.sites = [layer.name for layer in report.layers]
            record.channels = [len(layer.entropy) for layer in report.layers]
        self.model.train()
        self.pruner.apply()
        step = Step(
            step=number,
            density=float(self.pruner.density),
            top1_validation=top1,
            sites_collapsed=sum(bool(layer.collapsible) for layer in report.layers),
            entropy=[float(layer.mean) for layer in report.layers],
            mixed=[int(layer.mixed) for layer in report.layers],
            seconds=time.perf_counter() - started,
            emptied=self.emptied,
            guarded=list(self.guarded),
            patterns=[Pieces.of(layer.patterns) for layer in report.layers if layer.patterns is not None],
            linear=list(self.pruner.linear),
            histograms=[histogram(layer.entropy) for layer in report.layers],
        )
        checkpoint.save(self.folder, number, self.model, self.pruner, self.ranks)
        record.steps.append(step)
        record.chosen = self._choice()
        self.ranks.on_first(self._kept)
        self._tell("step", number)
        return report

    def _kept(self) -> None:
        """Write that a step is done, then remove what is of no use any more."""
        record = self.record
        record.save(self.folder)
        checkpoint.keep_only(self.folder, {0, record.chosen or 0, record.steps[-1].step})
        training.clear(self._checkpoints)

    def _train(self, number: int) -> float:
        """Train, or go on with a training that was interrupted; returns the seconds that this had taken before."""
        before, started, self.interrupted = self.interrupted, time.perf_counter(), None
        self._seed(number)
        self.model.train()
        spent = 0.0
        if before is not None:
            put_back(before, self.model, self.pruner)
            self.emptied, self.guarded, spent = (before["extra"][key] for key in ("emptied", "guarded", "seconds"))
        about = {"settings": self.record.settings, "emptied": self.emptied, "guarded": self.guarded}
        state = TrainingCheckpoint(
            self.model,
            self.pruner,
            self._checkpoints,
            label=number,
            before=before,
            extra=lambda: {**about, "seconds": spent + time.perf_counter() - started},
            ranks=self.ranks,
        )
        with self.pruner.attach():
            call(self.train, self.model, state)
        return spent

    def _seed(self, number: int) -> None:
        """Put the generators of torch, NumPy and Python where they are in a step, also in one that is resumed."""
        seed(self.record.settings["seed"] + number)

    def _choice(self) -> int:
        """The step to collapse, of those whose weights are still there: another budget may want one that is gone."""
        steps = [s for s in self.record.steps if s.step == 0 or checkpoint.path(self.folder, s.step).is_file()]
        return choose(steps, self.record.settings["max_drop"])

    def _measure(self, number: int) -> EntropyReport:
        self._tell("measure", number)
        self.model.eval()
        self._seed(number)
        return measure_entropy(self.model, self.inputs, patterns=self.patterns, group=self.group)

    def _pointless(self) -> bool:
        steps = self.record.steps
        if not steps:
            return False
        limit = steps[0].top1_validation - self.record.settings["max_drop"]
        if steps[-1].sites_collapsed == len(self.record.sites) and steps[-1].top1_validation >= limit:
            self.record.stopped = "every site has collapsed"
        elif all(step.top1_validation < limit for step in steps[-self.strategy.patience :]):
            self.record.stopped = f"accuracy below the budget for {self.strategy.patience} steps in a row"
        return bool(self.record.stopped)

    def finish(self, example: Any, test_inputs: Inputs) -> tuple[nn.Module, CollapseResult | None]:
        """Collapse the chosen step, compare, and write the model, the record and the report.

        Returns:
            The collapsed model, and on the first process how it came about.
        """
        record = self.record
        record.chosen = self._choice()
        self._tell("collapse", record.chosen)
        try:
            self.model.train()
            checkpoint.load(self.folder, record.chosen, self.model, self.pruner)
            self.model.eval()
            captured = self.pruner.capture
            network, result = collapse_and_compare(
                self.model,
                example,
                measure_entropy(self.model, self.inputs, group=self.group),
                data=self.inputs,
                test_data=test_inputs,
                test=self.test,
                record=record,
                folder=self.folder,
                settle=partial(settled, train=self.train, evaluate=self.evaluate, record=record, ranks=self.ranks),
                box=self.box,
                mode=self.mode,
                ranks=self.ranks,
                captured=None if captured.misfit(self.pruner.model, example) else captured,
            )
        except Exception as error:
            raise_with_the_way_on(error, self.folder)
        finally:  # also of a collapse that fails: the steps were expensive
            if self.ranks.first:
                self._write()
        self._tell("done", record.chosen)
        return network, replace(result, notes=(record.choice,)) if result and record.choice else result

    def _tell(self, stage: str, step: int) -> None:
        if self.ranks.first:
            self.progress(Event(stage, step, self.record, self.folder))

    def _write(self) -> None:
        """The record and the report, or what kept them from being written."""
        try:
            self.record.save(self.folder)
            write_html(self.record, self.folder)
        except Exception as error:
            self.record.failed.append(f"writing the report stopped with {reason(error)}")
