"""What a strategy is told of the trainings before."""

from __future__ import annotations

from layercollapse.report.record import Record
from layercollapse.strategies import Taken


def taken(record: Record, best: int) -> list[Taken]:
    """The steps of a run, for a strategy; `best` is the one that would be collapsed now."""
    limit = record.steps[0].top1_validation - record.settings["max_drop"]
    return [
        Taken(
            tuple(step.linear),
            step.top1_validation >= limit,
            step.step == best,
            dict(zip(record.sites, step.entropy, strict=True)),
        )
        for step in record.steps
    ]
