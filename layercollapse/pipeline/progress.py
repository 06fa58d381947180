"""The live progress of a run: a line for every finished step, a bar with the time left over all of it.

layercollapse.run(..., progress=layercollapse.ProgressBar())

On a terminal the bar is rich's; in a notebook it is one output that is written anew, which needs no widgets; elsewhere
there are the lines alone.
"""

from __future__ import annotations

import html
import importlib
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from layercollapse.errors import require
from layercollapse.pipeline.events import Event

if TYPE_CHECKING:
    from rich.console import Console

# Work beside the training batches of a step, in units of one pass over the training split forwards and backwards.
MEASURE_PASSES = 0.4  # entropy on the training split, accuracy on the others
COLLAPSE_PASSES = 2.0  # capture, merges, verification, latencies
EPOCHS = 5  # of a training, where nobody says
SECONDS = 0.5  # between two writings of a notebook's output

STAGES = {"train": "training", "measure": "measuring entropy", "collapse": "collapsing and comparing"}


class ProgressBar:
    """Shows how far a run is, and the time left: a `progress` of `layercollapse.run`, also a context manager.

    Args:
        console: where to print; by default a `rich.console.Console`, which knows terminals and notebooks.
        steps: prunings at most; None: as the run says.
        epochs: of every training.
        batches: optimizer steps of an epoch, of which each calls `tick`. None: the steps of all torch optimizers are
            counted, and how many there are is known when the first training is over; before that no time left is shown.

    Raises:
        LayerCollapseError: rich is not installed.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        steps: int | None = None,
        epochs: int = EPOCHS,
        batches: float | None = None,
    ) -> None:
        progress = require("rich.progress", "run")
        self.console: Console = require("rich.console", "run").Console() if console is None else console
        self.steps, self.epochs, self.batches = steps, epochs, batches
        self.progress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TextColumn("elapsed"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
            speed_estimate_period=120.0,
        )
        self.task = self.progress.add_task("starting", total=self._total)
        self._running = False
        self._counts = batches is None
        self._counted = 0  # optimizer steps of the training that goes on
        self._hook: Any = None
        self._output: Any = None  # of a notebook
        self._shown = 0.0

    @property
    def per_step(self) -> float | None:
        """The work of a step in optimizer steps."""
        return None if self.batches is None else (self.epochs + MEASURE_PASSES) * self.batches

    @property
    def _total(self) -> float | None:
        if self.per_step is None or self.batches is None or self.steps is None:
            return None
        return (self.steps + 1) * self.per_step + COLLAPSE_PASSES * self.batches

    def __enter__(self) -> ProgressBar:
        if not self._running:
            self._running = True
            if self.progress.disable:
                self._write()
            else:
                self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away. The next event shows it again."""
        self._count(False)
        if self._running and not self.progress.disable:
            self.progress.stop()
        if self._output is not None:
            self._output.update({"text/plain": ""}, raw=True)
            self._output = None
        self._running = False

    def __call__(self, event: Event) -> None:
        """What a run has to say."""
        self.__enter__()
        self.show(event)
        if event.stage == "done":
            self.close()

    def tick(self) -> None:
        """One optimizer step is done."""
        self.progress.advance(self.task)
        self._write()

    def show(self, event: Event) -> None:
        """Print what the stage has to say, and put the bar where the schedule is."""
        if self.steps is None:
            self.steps = int(event.record.settings.get("steps", 0))
            self.progress.update(self.task, total=self._total)
        self._count(self._counts and event.stage == "train")
        if event.stage == "step":
            self._step_line(event)
            self._learn(event)
            if self.per_step is not None:
                self.progress.update(self.task, completed=(event.step + 1) * self.per_step)
        elif event.stage == "interrupted":
            self.console.print(
                f"Interrupted: going on to the collapse with steps 0 to {event.step - 1}. Ctrl-C again ends at once."
            )
        elif event.stage == "collapse":
            if event.record.stopped and not event.record.interrupted:
                self.console.print(f"Stopped early: {event.record.stopped}.")
            if self.per_step is not None:
                self.progress.update(self.task, completed=(self.steps + 1) * self.per_step)
        if event.stage in STAGES:
            where = f"step {event.step} of {self.steps}: " if event.stage != "collapse" else ""
            self.progress.update(self.task, description=where + STAGES[event.stage])
        self._write(at_once=True)

    def _count(self, on: bool) -> None:
        """Whether the steps of torch's optimizers are counted."""
        if on and self._hook is None:
            self._counted = 0
            self._hook = register_optimizer_step_post_hook(lambda *_: self._counted_step())
        elif not on and self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _counted_step(self) -> None:
        self._counted += 1
        self.tick()

    def _learn(self, event: Event) -> None:
        """Take what the first training did for what every other will do; a training without optimizers is one step."""
        trained = event.step > 0 or event.record.settings.get("train_first", True)
        if self.batches is None and trained:
            self.batches = max(1, self._counted) / self.epochs
            self.progress.update(self.task, total=self._total)

    def _write(self, at_once: bool = False) -> None:
        """In a notebook, write its output anew."""
        if not (self.console.is_jupyter and self._running) or (
            not at_once and time.monotonic() < self._shown + SECONDS
        ):
            return
        self._shown = time.monotonic()
        task = self.progress.tasks[0]
        value = f'value="{task.completed:.0f}" max="{task.total:.0f}"' if task.total else ""
        words = [task.description, f"elapsed {_clock(task.elapsed)}", f"left {_clock(task.time_remaining)}"]
        if task.total:
            words.insert(1, f"{task.percentage:.0f} %")
        text = ", ".join(words)
        data = {"text/plain": text, "text/html": f"<progress {value}></progress> {html.escape(text)}"}
        if self._output is None:
            show = importlib.import_module("IPython.display").display  # which a notebook has
            self._output = show(data, raw=True, display_id=True)
        else:
            self._output.update(data, raw=True)

    def _step_line(self, event: Event) -> None:
        step, sites = event.record.steps[-1], len(event.record.sites)
        drop = step.top1_validation - event.record.steps[0].top1_validation
        change = f"({drop:+.2f})" if step.step else ""
        self.console.print(
            f"step {step.step:<2} kept {100 * step.density:6.2f} %"
            f"  validation {step.top1_validation:6.2f} % {change:<8}"
            f" linear {step.sites_collapsed:>2} of {sites}  {step.seconds:6.1f} s",
            highlight=False,
        )
        happened = [
            *([f"{step.emptied} sites lost the last of their weights"] if step.emptied > 1 else []),
            *(
                [f"the guard kept weights at {len(step.guarded)} site{'s' * (len(step.guarded) > 1)}"]
                if step.guarded
                else []
            ),
        ]
        if happened:
            self.console.print(f"        {', '.join(happened)}", highlight=False)


def _clock(seconds: float | None) -> str:
    """Hours, minutes and seconds; a dash where nothing is known yet."""
    if seconds is None:
        return "–"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
