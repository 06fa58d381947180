"""Several runs side by side, from their records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from layercollapse.errors import LayerCollapseError, require
from layercollapse.report.record import Record

if TYPE_CHECKING:
    from rich.table import Table


def column(folder: Path) -> dict[str, str]:
    """What there is to compare of a run, by label; dense → collapsed.

    Raises:
        LayerCollapseError: no run there, or it is not finished.
    """
    record = Record.load(folder)
    before, after, settings = record.before, record.after, record.settings
    if before is None or after is None:
        raise LayerCollapseError(f"run: expected a finished run, got {folder} with {len(record.steps)} steps")
    strategy = str(settings.get("strategy", "prune"))
    return {
        "network": str(settings.get("model", "?")),
        "data": str(settings.get("data", "?")),
        "strategy": f"{strategy} ({settings.get('rule')})" if "prune" in strategy else strategy,
        f"top-1 on {record.top1_split}, %": f"{before.top1:.2f} → {after.top1:.2f}",
        "rectifier sites": f"{len(record.sites)} → {len(record.sites) - record.sites_collapsed}",
        "depth": f"{before.depth} → {after.depth}",
        "parameters": f"{before.parameters:,} → {after.parameters:,}",
        **{
            f"faster, batch {size}": f"{milliseconds / after.latency_ms[size]:.2f}x"
            for size, milliseconds in before.latency_ms.items()
            if size in after.latency_ms
        },
    }


def table(folders: Sequence[Path]) -> Table:
    """A table of a column for each run, for `rich.print`.

    Raises:
        LayerCollapseError: one is no run, or is not finished.
    """
    columns = [column(folder) for folder in folders]
    made = require("rich.table", "run").Table()
    made.add_column("")
    for folder in folders:
        made.add_column(folder.resolve().name, justify="right", overflow="fold")
    for label in dict.fromkeys(label for one in columns for label in one):
        made.add_row(label, *(one.get(label, "–") for one in columns))
    return made
