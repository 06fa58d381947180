"""Collapse of a model that several processes hold parts of: one of them gathers it, and collapses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch.utils._pytree as pytree
from torch import Tensor, nn

from layercollapse._util.ranks import Ranks
from layercollapse._util.sharded import is_sharded, plain, settle, whole

Value = TypeVar("Value")


def sharded(model: nn.Module) -> bool:
    """Whether any parameter or buffer of a model is."""
    settle(model)
    return any(map(is_sharded, model.parameters())) or any(map(is_sharded, model.buffers()))


def on_first(model: nn.Module, work: Callable[[], Value]) -> Value | None:
    """What `work` gives on the first rank, while the model is there, whole, on its CPU; None on the others.

    One tensor is gathered at a time. An error of the first rank is one of all.
    """
    ranks = Ranks.of(model)
    with plain(model, _on_cpu if ranks.first else _left):
        return ranks.on_first(work)


def _on_cpu(tensor: Tensor) -> Tensor:
    value = whole(tensor.detach()).cpu()
    if not isinstance(tensor, nn.Parameter):
        return value
    return nn.Parameter(value, tensor.requires_grad)


def _left(tensor: Tensor) -> Tensor:
    whole(tensor.detach())
    return tensor


def moved(values: Any) -> Any:
    """Nested values with the tensors on the CPU."""
    return pytree.tree_map_only(Tensor, lambda tensor: whole(tensor).cpu(), values)


class Moved:
    """Batches on the CPU, as often as the ones given can be gone through."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = list(batches) if isinstance(batches, Iterator) else batches

    def __iter__(self) -> Iterator[Any]:
        return map(moved, self._batches)
