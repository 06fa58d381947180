"""Whose memory the outputs of a model are: new in every call, or that of an input, of the model, or of one another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn


@dataclass(frozen=True)
class Memory:
    """Whose memory one output is.

    Attributes:
        of_input: whether it is an input, or a view of one.
        of_model: whether it is a parameter, a buffer or another tensor of the model, or a view of one.
        overlaps: whether several of its elements lie at one place, as in what `expand` gives.
        others: positions of the outputs that share its memory.
    """

    of_input: bool = False
    of_model: bool = False
    overlaps: bool = False
    others: frozenset[int] = frozenset()


def output_memory(model: nn.Module, arguments: Any, outputs: Any) -> tuple[Memory, ...]:
    """Whose memory each output of a model's call is, in the order in which torch takes outputs apart.

    Args:
        model: the model, as the call has left it.
        arguments: what it was called with, the very tensors.
        outputs: what it returned.
    """
    given, outputs = _storages(pytree.tree_leaves(arguments)), pytree.tree_leaves(outputs)
    owned = _storages(value for module in model.modules() for value in _tensors(module))
    places = [_storage(leaf) for leaf in outputs]
    return tuple(
        Memory(
            place in given,
            place in owned,
            place is not None and any(step == 0 and n > 1 for step, n in zip(leaf.stride(), leaf.shape, strict=True)),
            frozenset(other for other, its in enumerate(places) if place is not None and its == place) - {at},
        )
        for at, (leaf, place) in enumerate(zip(outputs, places, strict=True))
    )


def _tensors(module: nn.Module) -> list[Any]:
    """A module's own parameters, buffers, and tensors that are neither."""
    return [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]


def _storages(values: Iterable[Any]) -> set[int]:
    return {place for value in values if (place := _storage(value)) is not None}


def _storage(value: Any) -> int | None:
    """Where a tensor's memory begins; None of one without elements or memory (sparse, meta), and of anything else."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return None
    try:
        return value.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):
        return None
