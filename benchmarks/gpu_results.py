"""What benchmarks/gpu.py has measured: gpu.json, which every case of every process adds to, the table, the picture.

A file is replaced as a whole after every case, so that a process that is killed loses the case it was at and no other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layercollapse._util.files import write_json, write_text

Row = dict[str, Any]
OURS = ("triton", "cuda")
B = 1 << 30


class Results:
    """The rows of several processes in one file; a process replaces what it measured before, and nothing else.

    Args:
        folder: where gpu.json and gpu.txt go.
        process: name of what this process measures ("cuda", "triton").
        about: the machine and versions, in the first lines of both files.
    """

    def __init__(self, folder: Path, process: str, about: dict[str, object]) -> None:
        self.folder, self.process = folder, process
        path = folder / "gpu.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.about = {**before.get("about", {}), **about}
        self.rows: list[Row] = [row for row in before.get("rows", []) if row["process"] != process]
        self.skipped: dict[str, list[str]] = {**before.get("not measured", {}), process: []}
        self.failed: dict[str, list[str]] = {**before.get("failed", {}), process: []}
        self.write()

    def add(self, rows: Iterable[Row]) -> None:
        self.rows += [{"process": self.process, **row} for row in rows]
        self.write()

    def skip(self, case: str) -> None:
        self.skipped[self.process].append(case)
        self.write()

    def fail(self, case: str) -> None:
        self.failed[self.process].append(case)
        self.write()

    def write(self) -> None:
        rows = {"rows": self.rows, "not measured": self.skipped, "failed": self.failed}
        write_json(self.folder / "gpu.json", {"about": self.about, **rows})
        write_text(self.folder / "gpu.txt", self.text())

    def text(self) -> str:
        lines = [f"{key}: {value}" for key, value in self.about.items()]
        lines += [line(row) for row in sorted(self.rows, key=self._order)]
        lines += [f"not measured by {who}: {case}" for who, cases in self.skipped.items() for case in cases]
        lines += [f"FAILED in {who}: {case}" for who, cases in self.failed.items() for case in cases]
        lines += ["", *(verdict(goal, self.rows) for goal in GOALS)]
        return "\n".join(lines) + "\n"

    def _order(self, row: Row) -> int:
        """Rows of one case together, wherever they were measured."""
        return next(index for index, other in enumerate(self.rows) if other["case"] == row["case"])


def short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def line(row: Row) -> str:
    hidden = ("case", "provider", "process", "op", "dtype", "bytes", "entries")
    values = "  ".join(f"{key} {short(value)}" for key, value in row.items() if key not in hidden)
    return f"{row['case']:66} {row['provider']:28} {values}"


@dataclass(frozen=True)
class Goal:
    """A bound on a figure of some rows.

    Attributes:
        text: the goal, in words.
        key: which figure.
        bound: what it may be at most; at least, if ``at_least``.
        of: whether a row is meant.
    """

    text: str
    key: str
    bound: float
    of: Callable[[Row], bool]
    at_least: bool = False

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


def _large(dtype: str) -> Callable[[Row], bool]:
    return lambda row: row["op"] == "masked_topk_" and row["dtype"] == dtype and row["entries"] == B


GOALS = [
    Goal(
        "sign_histogram, from 64 MB: at least 0.92 of a reduction of the same bytes",
        "of floor",
        0.92,
        lambda row: row["op"] == "sign_histogram" and row["bytes"] >= 64 << 20,
        at_least=True,
    ),
    Goal("masked_topk_, 1 B bfloat16: at most 1.65 reads and writes", "x floor", 1.65, _large("bfloat16")),
    Goal("masked_topk_, 1 B float32: at most 1.7 reads and writes", "x floor", 1.7, _large("float32")),
    Goal(
        "apply_mask_, from 64 MB: at most 1.1 times its bytes",
        "x floor",
        1.1,
        lambda row: row["op"] == "apply_mask_" and row["bytes"] >= 64 << 20,
    ),
    # A ResNet-50 in bfloat16 has 1.2 GB of pre-activations for 64 images: to read them alone takes 7 % of 5.6 ms.
    Goal(
        "probe: at most 5 % of a forward pass and one read of what it counts",
        "above reads %",
        5.0,
        lambda row: row["op"] == "probe",
    ),
]


def verdict(goal: Goal, rows: Iterable[Row]) -> str:
    """One line: for each backend of ours met or not, and its worst row."""
    found = []
    for name in OURS:
        mine = [row for row in rows if row["provider"] == name and goal.key in row and goal.of(row)]
        if not mine:
            found.append(f"{name} not measured")
            continue
        worst = (min if goal.at_least else max)(mine, key=lambda row: row[goal.key])
        missed = sum(not goal.met(row[goal.key]) for row in mine)
        word = f"NOT MET in {missed} of {len(mine)}" if missed else f"met in {len(mine)}"
        found.append(f"{name} {word}, worst {short(worst[goal.key])} ({worst['case']})")
    return f"GOAL {goal.text}: {'; '.join(found)}"


def picture(rows: list[Row], path: Path) -> None:
    """Draw the figures of both backends against the floor, if matplotlib is there."""
    try:
        import matplotlib as mpl
    except ImportError:
        return
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(16, 8))
    figures = (("sign_histogram", "of floor"), ("masked_topk_", "x floor"), ("apply_mask_", "x floor"))
    for axis, (op, key) in zip(axes, figures, strict=True):
        ours = [row for row in rows if row["op"] == op and row["provider"] in OURS]
        names = list(dict.fromkeys(row["case"].removeprefix(op) for row in ours))
        for provider in OURS:
            mine = [row for row in ours if row["provider"] == provider]
            places = [names.index(row["case"].removeprefix(op)) for row in mine]
            axis.plot([row[key] for row in mine], places, "o", label=provider)
        axis.set_yticks(range(len(names)), names, fontsize=6)
        axis.set_xscale("linear" if key == "of floor" else "log")
        axis.set_title(f"{op}: {'fraction' if key == 'of floor' else 'multiple'} of the floor")
        axis.axvline(1, color="gray")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
