"""Times the ops against what users have today and against the floor: the time to touch the same bytes once.

>>> rows = main(sizes=[10_000], repeats=1, providers=["layercollapse"])
>>> rows[0].op, rows[0].provider, rows[0].shape
('sign_histogram', 'layercollapse', '(1, 4, 2500)')

Every provider's answer is checked before it is timed. A provider and the floor are timed alternately in one process,
so that a busy machine slows both.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from layercollapse import ops
from layercollapse._util.timing import processor
from layercollapse._version import __version__
from layercollapse.errors import LayerCollapseError
from layercollapse.ops.bench_cases import Case, by_size

BUDGET = 1.0  # seconds for the calls of one provider; one that takes longer is timed by its checked call alone
FLOORS = 5  # calls of the floor at least


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        op, provider, shape, dtype, layout, entries: what was timed.
        ms: median time of a call.
        gb_per_s: bytes that the floor touches (`Case.bytes`) per second of ``ms``.
        floor_ms: median time of the floor, measured alternately.
        ratio: ``ms / floor_ms``.
        calls: how many the median is of.
    """

    op: str
    provider: str
    shape: str
    dtype: str
    layout: str
    entries: int
    ms: float
    gb_per_s: float
    floor_ms: float
    ratio: float
    calls: int


def measure(case: Case, provider: str, repeats: int) -> Row:
    """Check a provider's answer, then time it and the floor alternately."""
    call = case.providers[provider]
    case.reset()
    first, answer = _seconds(call)
    case.agrees(answer() if callable(answer) else answer)
    del answer
    times = [] if first < BUDGET else [first]
    calls = max(1, min(repeats, int(BUDGET / first)))
    floors = []
    for _ in range(max(calls, min(repeats, FLOORS))):
        if len(times) < calls:
            case.reset()
            times.append(_seconds(call)[0])
        case.reset()  # so that both find the caches alike
        floors.append(_seconds(case.floor)[0])
    ms, floor_ms = statistics.median(times) * 1e3, statistics.median(floors) * 1e3
    return Row(
        op=case.op,
        provider=provider,
        shape=case.shape,
        dtype=case.dtype,
        layout=case.layout,
        entries=case.entries,
        ms=ms,
        gb_per_s=case.bytes / ms / 1e6,
        floor_ms=floor_ms,
        ratio=ms / floor_ms,
        calls=len(times),
    )


def run(
    cases: Iterable[Case],
    *,
    repeats: int = 15,
    providers: Sequence[str] | None = None,
    progress: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Measure every provider of every case; see `main`."""
    rows = []
    for case in cases:
        for provider in case.providers:
            if providers is not None and provider not in providers:
                continue
            rows.append(measure(case, provider, repeats))
            if progress is not None:
                progress(rows[-1])
    return rows


def main(
    sizes: Sequence[int] = (1_000_000, 10_000_000),
    *,
    repeats: int = 15,
    providers: Sequence[str] | None = None,
    progress: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Measure the ops at several sizes.

    Args:
        sizes: entries of a case, about.
        repeats: calls per measurement at most; the median counts.
        providers: names to keep; all by default.
        progress: called with each row as soon as it is there.

    Returns:
        The rows, in the order measured.
    """
    if repeats < 1 or not sizes or min(sizes) < 1000:
        raise LayerCollapseError(f"sizes, repeats: expected at least 1000 and 1, got {list(sizes)} and {repeats}")
    return run(by_size(sizes), repeats=repeats, providers=providers, progress=progress)


class Table:
    """Prints rows as they come, a heading and the floor above those of one case."""

    def __init__(self, write: Callable[[str], object] = print) -> None:
        self._write = write
        self._case: tuple[str, ...] = ()

    def add(self, row: Row) -> None:
        """Print a row."""
        case = (row.op, row.shape, row.dtype, row.layout)
        if case != self._case:
            self._case = case
            title = f"{row.op} {row.shape}, {row.dtype}, {row.layout}"
            self._write(f"\n{title:<64}{'ms':>11}{'GB/s':>9}{'x floor':>10}")
            speed = row.gb_per_s * row.ratio
            self._write(self._line("the floor: the same bytes touched once", row.floor_ms, speed, 1.0))
        self._write(self._line(row.provider, row.ms, row.gb_per_s, row.ratio))

    @staticmethod
    def _line(name: str, ms: float, gb_per_s: float, ratio: float) -> str:
        times = f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2f}"
        return f"  {name:<62}{ms:>11,.3f}{gb_per_s:>9.2f}{times:>10}"


def _seconds(call: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    answer = call()
    return time.perf_counter() - start, answer


def machine() -> dict[str, object]:
    """Return what the figures depend on: CPU, threads, instruction set, versions, and the load from other work."""
    return {
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "backend": ops.backends()["cpu"].detail,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "layercollapse": __version__,
    }
