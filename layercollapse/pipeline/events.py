"""What a run tells while it goes, and those whom it tells."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from layercollapse.errors import LayerCollapseError
from layercollapse.graph.export import reason
from layercollapse.report.record import Record


@dataclass(frozen=True)
class Event:
    """What `progress` is called with.

    Attributes:
        stage: "train", "measure", "step" (a step is done), "interrupted", "collapse" or "done".
        step: the step it belongs to; 0 is the dense network.
        record: the run so far.
        folder: of the run.
    """

    stage: str
    step: int
    record: Record
    folder: Path = Path()


Progress: TypeAlias = Callable[[Event], object]


class Listeners:
    """Those whom a run tells: each is called with every event, in order, and closed at the end if it can be.

    Args:
        progress: a function, several, or None.

    Raises:
        LayerCollapseError: it is something else.
    """

    def __init__(self, progress: Progress | Sequence[Progress] | None) -> None:
        self.all: list[Any] = list(progress) if isinstance(progress, Sequence) else [progress]
        self.all = [] if progress is None else self.all
        for one in self.all:
            if not callable(one):
                raise LayerCollapseError(f"progress: expected a function of an event, or several, got {one!r}")

    def __call__(self, event: Event) -> None:
        for one in self.all:
            one(event)

    def close(self) -> None:
        """Call the `close` of those that have one; what fails then takes nothing from the run, and is a warning."""
        for one in self.all:
            try:
                getattr(one, "close", lambda: None)()
            except Exception as error:
                warnings.warn(f"closing {type(one).__name__} stopped with {reason(error)}", stacklevel=2)
