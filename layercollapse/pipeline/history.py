"""The steps of a run so far: which is collapsed, what a strategy is told of them, what they were made with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from layercollapse.errors import LayerCollapseError
from layercollapse.report.record import Record, Step
from layercollapse.strategies import Taken

# What runs were made with before these settings could be chosen.
_DEFAULTS = {"unit": "percent", "max_layer_share": 1.0, "train_first": True, "strategy": "prune"}
# They change when to stop and what to choose, not what was trained.
_FREE = ("steps", "max_drop")


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


def choose(steps: Sequence[Step], max_drop: float) -> int:
    """The step to collapse: within the accuracy budget, most collapsed sites, then best accuracy.

    Args:
        steps: at least the dense step; the first is what accuracy is compared with.
        max_drop: percentage points.
    """
    limit = steps[0].top1_validation - max_drop
    eligible = [step for step in steps if step.top1_validation >= limit]
    return max(eligible, key=lambda step: (step.sites_collapsed, step.top1_validation)).step


def check_settings(ours: Mapping[str, Any], theirs: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with what was made with other settings.

    Args:
        ours: of the run that goes on.
        theirs: of what there is.
        folder: the run's, for the message.

    Raises:
        LayerCollapseError: they differ in more than when to stop.
    """
    theirs = {**_DEFAULTS, **theirs}
    if other := [key for key in ours if key not in _FREE and ours[key] != theirs.get(key)]:
        raise LayerCollapseError(
            f"resume: expected the settings of the run in {folder}, got "
            + ", ".join(f"{key}={ours[key]!r} instead of {theirs.get(key)!r}" for key in other)
        )


def how_to_go_on(folder: Path) -> str:
    """The calls that continue a run."""
    return (
        f"the finished steps are in {folder}: run(..., out={str(folder)!r}, resume=True) goes on from them, or "
        f"`layercollapse run --resume --out {folder}` where the command line began it"
    )


def raise_with_the_way_on(error: Exception, folder: Path) -> NoReturn:
    """The same error, which says how to go on."""
    if isinstance(error, LayerCollapseError):
        raise LayerCollapseError(f"{error}; {how_to_go_on(folder)}") from error
    getattr(error, "add_note", warnings.warn)(how_to_go_on(folder))  # notes: from Python 3.11 on
    raise error
