"""How much outputs vary over samples: what tells an output that depends on the input from a constant."""

from __future__ import annotations

import torch
from torch import Tensor

# Differences of so many units in the last place of the largest value are rounding: merged layers sum in another order.
ROUNDING = 64


class Spread:
    """The range of every entry of an output over samples, batch by batch: memory for two samples of each shape."""

    def __init__(self) -> None:
        self.scale = 0.0  # largest finite magnitude of any entry
        self.unit = 0.0  # spacing of the dtype's values at 1; 0 where they are no floating-point numbers
        self._ends: dict[torch.Size, tuple[Tensor, Tensor, int]] = {}  # shape of a sample -> low, high, samples

    def add(self, output: Tensor) -> None:
        """Take a batch (N, ...), or a scalar as one sample. NaN and infinities count for nothing."""
        batch = output.detach()
        batch = batch[None] if batch.ndim == 0 else batch
        if batch.is_floating_point():
            self.unit = max(self.unit, torch.finfo(batch.dtype).eps)
        if not batch.numel():
            return
        values, shape = batch.double(), batch.shape[1:]
        finite = values.isfinite()
        low = values.where(finite, torch.inf).amin(0)
        high = values.where(finite, -torch.inf).amax(0)
        # A sum of -low and high would do, but that entries without a finite value have (inf, -inf).
        ends = torch.stack([low, high]).abs()
        self.scale = max(self.scale, float(ends.where(ends.isfinite(), 0).amax()))
        if shape in self._ends:
            earlier = self._ends[shape]
            low, high = low.minimum(earlier[0]), high.maximum(earlier[1])
        self._ends[shape] = low, high, len(batch) + (self._ends[shape][2] if shape in self._ends else 0)

    @property
    def value(self) -> float | None:
        """Largest difference of an entry between two samples; None where no two samples could be compared."""
        ranges = [(high - low).clamp(min=0) for low, high, samples in self._ends.values() if samples > 1]
        return max(float(one.amax()) for one in ranges) if ranges else None

    @property
    def rounding(self) -> float:
        """What differences of outputs as large as these may be by rounding alone."""
        return ROUNDING * self.unit * self.scale
