"""Batches as users have them, and the pass over them that measures the sign entropy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from layercollapse.entropy import EntropyProbe, EntropyReport
from layercollapse.errors import LayerCollapseError


class Inputs:
    """The input tensors of a re-iterable of batches, on a device.

    Args:
        batches: tensors, or tuples that start with one; a list or a DataLoader, not a generator.
        argument: what messages call them.
        device: where to move the tensors; None leaves them.

    Raises:
        LayerCollapseError: not such batches, or none.
    """

    def __init__(self, batches: Iterable[Any], argument: str, device: torch.device | None = None) -> None:
        if isinstance(batches, Iterator):
            raise LayerCollapseError(
                f"{argument}: expected batches that can be gone through again (a list, a DataLoader), "
                f"got a {type(batches).__name__}"
            )
        if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
            raise LayerCollapseError(f"{argument}: expected an iterable of batches, got a {type(batches).__name__}")
        self.batches, self.argument, self.device = batches, argument, device
        next(iter(self))

    def __iter__(self) -> Iterator[Tensor]:
        empty = True
        for batch in self.batches:
            x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            if not isinstance(x, Tensor):
                raise LayerCollapseError(
                    f"{self.argument}: expected batches that are a tensor or a tuple that starts with one, "
                    f"got {type(batch).__name__}"
                )
            empty = False
            yield x if self.device is None else x.to(self.device)
        if empty:
            raise LayerCollapseError(f"{self.argument}: expected at least one batch, got an empty iterable")


@torch.no_grad()
def measure_entropy(model: nn.Module, inputs: Iterable[Tensor]) -> EntropyReport:
    """The sign entropy of every site over all batches, in the mode the model is in."""
    with EntropyProbe(model) as probe:
        for x in inputs:
            model(x)
    return probe.report()
