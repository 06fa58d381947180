"""The live progress of a run on the terminal: a line per finished step, a bar with the time left over all of it."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from layercollapse.errors import require
from layercollapse.pipeline.schedule import Event

if TYPE_CHECKING:
    from rich.console import Console

# Work beside the training batches of a step, in units of one pass over the training split forwards and backwards.
MEASURE_PASSES = 0.4  # entropy on the training split, accuracy on the others
COLLAPSE_PASSES = 2.0  # capture, merges, verification, latencies


class RunDisplay:
    """A context manager whose `tick` and `show` are the progress hooks of the training and of the schedule.

    Args:
        console: where to print; on something that is not a terminal only the lines per step appear.
        steps: prunings at most.
        epochs: of every training.
        batches: optimizer steps of an epoch.
    """

    def __init__(self, console: Console, *, steps: int, epochs: int, batches: int) -> None:
        progress = require("rich.progress", "run")
        self.console, self.steps = console, steps
        self.batches = batches
        self.per_step = (epochs + MEASURE_PASSES) * batches
        self.progress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TextColumn("elapsed"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            speed_estimate_period=120.0,
        )
        self.task = self.progress.add_task("starting", total=(steps + 1) * self.per_step + COLLAPSE_PASSES * batches)

    def __enter__(self) -> RunDisplay:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def tick(self) -> None:
        """One optimizer step is done."""
        self.progress.advance(self.task)

    def show(self, event: Event) -> None:
        """Print what the stage has to say, and put the bar where the schedule is."""
        stages = {
            "train": "training",
            "measure": "measuring entropy",
            "collapse": "collapsing and comparing",
        }
        if event.stage == "step":
            self._step_line(event)
            self.progress.update(self.task, completed=(event.step + 1) * self.per_step)
        elif event.stage == "interrupted":
            self.console.print(
                f"Interrupted: going on to the collapse with steps 0 to {event.step - 1}. Ctrl-C again ends at once."
            )
        elif event.stage == "collapse":
            if event.record.stopped and not event.record.interrupted:
                self.console.print(f"Stopped early: {event.record.stopped}.")
            self.progress.update(self.task, completed=(self.steps + 1) * self.per_step)
        if event.stage in stages:
            where = f"step {event.step} of {self.steps}: " if event.stage != "collapse" else ""
            self.progress.update(self.task, description=where + stages[event.stage])

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
