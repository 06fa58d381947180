"""The record of a run, step by step as it is made, for TensorBoard and for Weights & Biases.

from layercollapse.integrations.logs import TensorBoard

layercollapse.run(..., progress=TensorBoard())

The numbers are those of metrics.json, and the entropy of every site. A run that is resumed goes on with its log: what
has been written is in a file beside it, and no step is written twice.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Any

from layercollapse._util.files import read_json, writable_folder, write_json
from layercollapse.errors import LayerCollapseError, require
from layercollapse.graph.export import reason
from layercollapse.pipeline.events import Event
from layercollapse.report.record import Record, Step
from layercollapse.report.render import rows

TABLE = "before and after"


class Log(ABC):
    """A `progress` of `layercollapse.run` that writes every finished step once, and the table at the end.

    What fails before the first training is an error; what fails later is a warning, and the run goes on without.

    Args:
        folder: where the log goes; None: into the run's folder.
    """

    name: str  # of the folder in the run's
    state = "logged.json"  # what has been written

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._place: Path | None = None  # of this run, once it has begun
        self._state: dict[str, Any] = {}
        self._failed = False

    def __call__(self, event: Event) -> None:
        """What a run has to say.

        Raises:
            LayerCollapseError: the folder has the log of another run, or cannot be written; before any training.
        """
        if self._failed:
            return
        if self._place is None:
            self._begin(event)
        try:
            self._catch_up(event)
        except Exception as error:
            self._failed = True
            warnings.warn(f"{type(self).__name__}: writing stopped with {reason(error)}; the run goes on", stacklevel=2)

    def close(self) -> None:
        """Write what is left. A run that begins later begins a log of its own."""
        try:
            if self._place is not None:
                self._end()
        finally:
            self._place, self._state, self._failed = None, {}, False

    def _begin(self, event: Event) -> None:
        place = writable_folder(event.folder / self.name if self.folder is None else self.folder, "folder")
        file = place / self.state
        state = read_json(file, "folder") if file.is_file() else {"steps": []}
        steps = state.get("steps") if isinstance(state, dict) else None
        known = [_written(step) for step in event.record.steps]
        if not isinstance(steps, list) or steps != known[: len(steps)]:
            raise LayerCollapseError(
                f"folder: expected one for the log of this run, got one with the log of another, as {file} says; "
                "choose another folder, or delete what is there"
            )
        self._state, self._place = state, place
        self._open(event, place)

    def _catch_up(self, event: Event) -> None:
        """Write the steps that are not written, and at the end the table."""
        record, written = event.record, self._state["steps"]
        for step in record.steps[len(written) :]:
            self._step(step.step, _numbers(record, step))
            written.append(_written(step))
            self._save()
        if event.stage == "done" and record.before is not None and record.after is not None:
            result = {"before": asdict(record.before), "after": asdict(record.after)}
            if result != self._state.get("result"):
                self._result(record, result)
                self._state["result"] = result
                self._save()

    def _save(self) -> None:
        assert self._place is not None
        write_json(self._place / self.state, self._state)

    @abstractmethod
    def _open(self, event: Event, place: Path) -> None:
        """Begin the log in a folder, or go on with it."""

    @abstractmethod
    def _step(self, number: int, numbers: dict[str, float]) -> None:
        """Write the numbers of a step, by name."""

    @abstractmethod
    def _result(self, record: Record, result: dict[str, Any]) -> None:
        """Write the table of a finished run."""

    @abstractmethod
    def _end(self) -> None:
        """Write what is left, and end the log."""


def _written(step: Step) -> list[Any]:
    """What tells a step from that of another run."""
    return [step.step, step.density, step.top1_validation, step.entropy]


def _numbers(record: Record, step: Step) -> dict[str, float]:
    """The numbers of a step by name: those in metrics.json, and the mean entropy of every site in bits."""
    entropies = zip(record.sites, step.entropy, strict=True)
    return {
        "top1_validation": step.top1_validation,
        "density": step.density,
        "sites_collapsed": step.sites_collapsed,
        # TensorBoard has no # in names.
        **{f"entropy/{site.replace('#', '-')}": entropy for site, entropy in entropies},
    }


def _cells(record: Record) -> tuple[list[str], list[list[str]]]:
    """The names of the table's columns, and its rows."""
    return ["of", "dense", "collapsed", "change"], [[r.label, r.before, r.after, r.change] for r in rows(record)]


class TensorBoard(Log):
    """Event files for TensorBoard (``tensorboard --logdir runs``); needs ``layercollapse[tensorboard]``.

    Args:
        folder: of the event files; None: ``tensorboard`` in the run's folder.

    Raises:
        LayerCollapseError: tensorboard is not installed.
    """

    name = "tensorboard"

    def __init__(self, folder: str | Path | None = None) -> None:
        super().__init__(folder)
        require("tensorboard", "tensorboard")

    def _open(self, event: Event, place: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # A step of which a run that was killed wrote a part is not shown beside the one that is written now.
        self._writer = SummaryWriter(str(place), purge_step=len(self._state["steps"]))

    def _step(self, number: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, number)
        self._writer.flush()

    def _result(self, record: Record, result: dict[str, Any]) -> None:
        head, cells = _cells(record)
        lines = [head, ["---"] * len(head), *cells]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        self._writer.add_text(TABLE, table, len(record.steps))
        self._writer.flush()

    def _end(self) -> None:
        self._writer.close()


class WeightsAndBiases(Log):
    """A run of Weights & Biases, on disk alone until ``wandb sync`` sends it; needs ``layercollapse[wandb]``.

    A resumed run has the same id, in another folder beside the first: ``wandb sync`` takes both for one run.

    Args:
        folder: in which wandb makes its own folder ``wandb``; None: the run's.
        init: for `wandb.init`, for example ``project="mine"``, or ``mode="online"``.

    Raises:
        LayerCollapseError: wandb is not installed.
    """

    name, state = ".", "wandb.json"  # wandb makes its folder there

    def __init__(self, folder: str | Path | None = None, **init: Any) -> None:
        super().__init__(folder)
        self._wandb, self._init = require("wandb", "wandb"), init

    def _open(self, event: Event, place: Path) -> None:
        # Its own lines, and what it does to stdout, would go through the bar.
        quiet = self._wandb.Settings(console="off", silent=True)
        given = {
            "project": "layercollapse",
            "name": event.folder.resolve().name,
            "config": event.record.settings,
            "mode": "offline",
            "dir": str(place),
            "reinit": "create_new",
            "settings": quiet,
        }
        known = {"id": self._state["id"]} if "id" in self._state else {}
        self._run = self._wandb.init(**{**given, **known, **self._init})
        self._state["id"] = self._run.id
        self._save()

    def _step(self, number: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=number)

    def _result(self, record: Record, result: dict[str, Any]) -> None:
        head, cells = _cells(record)
        self._run.log({TABLE: self._wandb.Table(columns=head, data=cells)}, step=len(record.steps))
        self._run.summary.update(result)

    def _end(self) -> None:
        self._run.finish()


LOGS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
