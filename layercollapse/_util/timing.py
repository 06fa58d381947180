"""Times of calls in turns, and the name of the processor that they depend on."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch


def in_turns(
    calls: Sequence[Callable[[], object]],
    device: torch.device,
    *,
    seconds: float,
    warmup: int,
    minimum: int,
    maximum: int | None = None,
) -> list[float]:
    """Median time of each call, in milliseconds.

    The calls take turns, forwards and backwards (A B B A), so that a change of the machine's speed meets
    all of them alike.

    Args:
        calls: what to time.
        device: where they work.
        seconds: stop after this long in all.
        warmup: calls of each that are not counted.
        minimum: calls of each that are counted even if it takes longer.
        maximum: calls of each after which it stops before `seconds` are over; None for no such number.
    """
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(warmup):
        for call in calls:
            call()
    _synchronize(device)
    end = time.perf_counter() + seconds
    order = list(range(len(calls)))
    while calls and (len(times[0]) < minimum or time.perf_counter() < end):
        if maximum is not None and len(times[0]) >= maximum:
            break
        for index in order + order[::-1]:
            start = time.perf_counter()
            calls[index]()
            _synchronize(device)
            times[index].append(time.perf_counter() - start)
    return [1e3 * statistics.median(samples) for samples in times]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def processor() -> str:
    """The model of the processor, or its architecture where the system does not say."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
