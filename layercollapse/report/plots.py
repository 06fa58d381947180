"""The curves of the report, as SVG whose colours are CSS variables: one picture for light and dark pages."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from layercollapse.errors import require
from layercollapse.report.record import Step

# Colours that matplotlib writes into the SVG, and the CSS variable that each becomes.
INK, FAINT, ACCENT, SECOND = "#010203", "#040506", "#070809", "#0a0b0c"
VARIABLES = {INK: "--ink", FAINT: "--faint", ACCENT: "--accent", SECOND: "--second"}


def accuracy_and_sparsity(steps: Sequence[Step], chosen: int | None, limit: float) -> str:
    """Validation accuracy (left axis, %) and sparsity (right axis, %) over the steps, as an `<svg>` element.

    Args:
        steps: at least one.
        chosen: the step that was collapsed, circled; None if none was.
        limit: the accuracy in percent below which a step is outside the budget, drawn dashed.
    """
    require("matplotlib", "run")
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    x = [step.step for step in steps]
    top1 = [step.top1_validation for step in steps]
    style: Any = {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 11,
        "svg.hashsalt": "layercollapse",
        "text.color": INK,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with rc_context(style):
        figure = Figure(figsize=(8, 3.4), layout="constrained")
        left = figure.add_subplot()
        right = left.twinx()
        right.plot(x, [100 * (1 - step.density) for step in steps], color=SECOND, marker="s", ms=4, lw=1.5)
        right.set_ylabel("sparsity of the prunable weights, %", color=SECOND)
        right.set_ylim(-4, 104)
        left.plot(x, top1, color=ACCENT, marker="o", ms=6, lw=2)
        left.axhline(limit, color=ACCENT, lw=1, ls=(0, (4, 4)))
        left.annotate("accuracy budget", (0, limit), (2, -12), textcoords="offset points", color=ACCENT, size=9,
                      xycoords=("axes fraction", "data"))  # fmt: skip
        low, high = min(*top1, limit), max(*top1, limit)
        margin = max(0.3, 0.15 * (high - low))
        left.set_ylim(low - margin, high + margin)
        left.set_ylabel("top-1 on validation, %", color=ACCENT)
        left.set_xlabel("pruning step")
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.set_xlim(-0.3, max(1, x[-1]) + 0.3)
        if chosen is not None:
            left.plot([chosen], [top1[chosen]], marker="o", ms=14, mfc="none", mec=ACCENT, mew=1.5)
        left.set_zorder(right.get_zorder() + 1)  # the accuracy on top
        for axes in (left, right):
            axes.patch.set_visible(False)
            axes.spines["top"].set_visible(False)
        left.grid(axis="y", color=FAINT, lw=0.5)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()[file.getvalue().index("<svg") :]
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
