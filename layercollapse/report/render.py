"""What a person sees at the end: the table on the terminal and `report.html`, both from the record alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from layercollapse._util.files import write_text
from layercollapse._version import __version__
from layercollapse.compiler.tuning.variants import Variant
from layercollapse.errors import require
from layercollapse.report import drawing, plots
from layercollapse.report.record import Record

if TYPE_CHECKING:
    from rich.table import Table

FILE = "report.html"
DRAWING_FILE = "network.svg"
TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Row:
    """One line of the before/after table, as text; `change` is empty where a ratio says nothing."""

    label: str
    before: str
    after: str
    change: str


def rows(record: Record) -> list[Row]:
    """The before/after table of a finished run."""
    before, after = record.before, record.after
    assert before is not None
    assert after is not None
    total = len(record.sites)
    lines = [
        Row(
            f"top-1 on the {record.top1_split} split",
            f"{before.top1:.2f} %",
            f"{after.top1:.2f} %",
            f"{after.top1 - before.top1:+.2f} points",
        ),
        Row("rectifier sites", f"{total}", f"{total - record.sites_collapsed}", f"{record.sites_collapsed} collapsed"),
        Row(
            "depth (layers with weights)",
            f"{before.depth}",
            f"{after.depth}",
            f"{after.depth - before.depth:+d}" if after.depth != before.depth else "the same",
        ),
        Row(
            "parameters", f"{before.parameters:,}", f"{after.parameters:,}", _times(before.parameters, after.parameters)
        ),
        Row("MACs per sample", f"{before.macs:,}", f"{after.macs:,}", _times(before.macs, after.macs)),
        Row("file", f"{before.file_mib:.2f} MiB", f"{after.file_mib:.2f} MiB", _times(before.file_mib, after.file_mib)),
    ]
    for size, milliseconds in before.latency_ms.items():
        lines.append(
            Row(
                f"latency, batch {size} (median)",
                f"{milliseconds:.2f} ms",
                f"{after.latency_ms[size]:.2f} ms",
                _times(milliseconds, after.latency_ms[size], "faster", "slower"),
            )
        )
    return lines


def _times(before: float, after: float, less: str = "smaller", more: str = "larger") -> str:
    """The ratio that makes a change readable, for example "1.40x smaller"."""
    if before <= 0 or after <= 0:
        return ""
    ratio, word = (before / after, less) if before >= after else (after / before, more)
    return "the same" if f"{ratio:.2f}" == "1.00" else f"{ratio:.2f}x {word}"


def agreement_text(record: Record) -> str:
    """One sentence on how far the collapsed model is from the sparse one; empty before the comparison."""
    if record.max_abs_error is None:
        return ""
    if record.refitted:
        return (
            f"Replaced by layers that were fitted on the data, and trained again: {'; '.join(record.refitted)}; "
            f"the outputs are not those of the sparse model any more: {record.identical:,} of {record.compared:,} "
            "predictions identical."
        )
    if record.repadded:
        return (
            f"Merged with a padding moved, which changes the border: {', '.join(record.repadded)}; the outputs are not "
            f"those of the sparse model any more: {record.identical:,} of {record.compared:,} predictions identical."
        )
    return (
        f"Collapsed against sparse: max abs error {record.max_abs_error:.1e} over {record.compared:,} samples, "
        f"{record.identical:,} of {record.compared:,} predictions identical."
    )


def table(record: Record) -> Table:
    """The before/after table for `rich.print`."""
    table = require("rich.table", "run").Table(title="Before and after", title_justify="left")
    table.add_column("")
    for header in ("dense", "collapsed"):
        table.add_column(header, justify="right")
    table.add_column("change", justify="right", style="bold")
    for row in rows(record):
        table.add_row(row.label, row.before, row.after, row.change)
    return table


def headline(record: Record) -> str:
    """The outcome in one sentence."""
    if record.before is None or record.after is None:
        return f"No result yet (steps on record: {len(record.steps)})."
    removed = record.before.depth - record.after.depth
    change = record.after.top1 - record.before.top1
    return (
        f"{record.sites_collapsed} of {len(record.sites)} rectifiers removed, depth {record.before.depth} to "
        f"{record.after.depth} ({removed} layers fewer), top-1 {record.after.top1:.2f} % ({change:+.2f} points)."
    )


def short_names(names: Sequence[str], longest: int = 30) -> list[str]:
    """Labels for a narrow column: where names are long, what all of them begin and end with becomes an ellipsis."""
    parts = [name.split(".") for name in names]
    if len(names) < 2 or max(map(len, names)) <= longest:
        return list(names)
    most = min(map(len, parts)) - 1
    head = next((i for i in range(most) if len({part[i] for part in parts}) > 1), most)
    most -= head
    tail = next((i for i in range(most) if len({part[-1 - i] for part in parts}) > 1), most)
    ends = ("…" if head else "", "…" if tail else "")
    return [ends[0] + ".".join(part[head : len(part) - tail]) + ends[1] for part in parts]


def html(record: Record) -> str:
    """The page as one string: styles and pictures inside, no script, nothing fetched."""
    jinja2 = require("jinja2", "run")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("layercollapse.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    steps = record.steps
    limit = steps[0].top1_validation - record.settings["max_drop"] if steps else 0.0
    return environment.get_template(TEMPLATE).render(
        record=record,
        labels=short_names(record.sites),
        version=__version__,
        headline=headline(record),
        rows=rows(record) if record.before and record.after else [],
        agreement=agreement_text(record),
        plot=jinja2.utils.markupsafe.Markup(plots.accuracy_and_sparsity(steps, record.chosen, limit)) if steps else "",
        drawing=jinja2.utils.markupsafe.Markup(drawing.networks(record)) if record.parts_after else "",
        shapes=_shapes(record),
        unused=record.form != Variant.CHOSEN and any(region.variant != Variant.ALL for region in record.regions),
        highest=max((value for step in steps for value in step.entropy), default=0) or 1,
    )


def _shapes(record: Record) -> list[tuple[str, list[list[int]]]]:
    """A site's label, and its histograms in the dense network and in the chosen one, if that is another."""
    if not record.steps or not record.steps[0].histograms:
        return []
    shown = [step.histograms for step in record.steps if step.step in (0, record.chosen) and step.histograms]
    return [
        (label, list(map(list, some)))
        for label, some in zip(short_names(record.sites), zip(*shown, strict=True), strict=True)
    ]


def check_installed() -> None:
    """Refuse at the start of a run what would be missing at its end.

    Raises:
        LayerCollapseError: a package that the report needs is not installed.
    """
    for module in ("jinja2", "matplotlib"):
        require(module, "run")


def write_html(record: Record, folder: Path) -> Path:
    """Write `report.html` into the run's folder, and its drawing as `network.svg`; returns the page's path."""
    write_text(folder / FILE, html(record))
    if record.parts_after:
        write_text(folder / DRAWING_FILE, drawing.networks(record, own=True))
    else:  # that of an earlier state goes
        (folder / DRAWING_FILE).unlink(missing_ok=True)
    return folder / FILE
