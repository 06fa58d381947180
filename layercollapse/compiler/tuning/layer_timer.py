"""Measure single layers on the device where they will run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from layercollapse.compiler.backend.emit import build
from layercollapse.compiler.ir.records import Affine, ConstantMap

_ROUNDS = 15


class Clock:
    """Median time of a layer for an input shape, in ms; layers of the same sizes are measured once.

    Args:
        device: where to measure.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._times: dict[tuple, float] = {}

    def __call__(self, op: Affine, inputs: tuple[int, ...]) -> float:
        """Time of ``op`` on an input (N, I, *spatial) or (N, *, I), in ms."""
        channels = list(inputs)
        channels[op.channel_dim] = op.inputs  # channels may have gone since the shape was noted
        key = (op.size, op.geometry, op.groups, op.border_weight is None, tuple(channels), op.dtype)
        if key not in self._times:
            # Zeros are as fast as anything else: nothing that is merged is computed for this.
            zeros = replace(op, weight=torch.zeros(op.size, dtype=op.dtype))
            parts = [build(zeros, self._device).eval()]
            if op.border_weight is not None:
                parts.append(
                    build(ConstantMap(op.border_weight, op.bias, op.geometry, (), op.dtype), self._device).eval()
                )
            # Here they leave the user's random numbers alone.
            x = torch.zeros(channels, dtype=op.dtype, device=self._device)
            with torch.inference_mode():
                self._times[key] = _median(lambda: sum(part(x) for part in parts), self._device)
        return self._times[key]


def _median(run: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(_ROUNDS + 3):
        _wait(device)
        begin = time.perf_counter()
        run()
        _wait(device)
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times[3:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
