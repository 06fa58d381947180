"""Batches as users have them, and the pass over them that measures the sign entropy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from layercollapse.entropy.probe import EntropyProbe, EntropyReport
from layercollapse.errors import LayerCollapseError
from layercollapse.graph.export import arguments_in, call_arguments

Batch: TypeAlias = "Tensor | dict[str, Any]"


class Inputs:
    """The model's inputs of a re-iterable of batches, on the model's device: tensors, or dicts of arguments.

    Args:
        batches: tensors, tuples that start with one, or dicts of keyword arguments, of which those are taken
            that the model takes (see `arguments_in`); a list or a DataLoader, not a generator.
        argument: what messages call them.
        model: what they are for; None leaves tensors where they are and dicts as they are.
        example_inputs: what the model is captured with, if that is known: of dicts, its arguments are taken.

    Raises:
        LayerCollapseError: not such batches, or none.
    """

    def __init__(
        self, batches: Iterable[Any], argument: str, model: nn.Module | None = None, example_inputs: Any = None
    ) -> None:
        if isinstance(batches, Iterator):
            raise LayerCollapseError(
                f"{argument}: expected batches that can be gone through again (a list, a DataLoader), "
                f"got a {type(batches).__name__}"
            )
        if isinstance(batches, Tensor | Mapping) or not isinstance(batches, Iterable):
            raise LayerCollapseError(f"{argument}: expected an iterable of batches, got a {type(batches).__name__}")
        self.batches, self.argument = batches, argument
        self._device = None if model is None else next((p.device for p in model.parameters()), None)
        self._model, self._example = model, example_inputs
        next(iter(self))

    def __iter__(self) -> Iterator[Batch]:
        empty = True
        for batch in self.batches:
            x = batch[0] if isinstance(batch, tuple | list) and batch else batch
            if isinstance(x, Mapping):
                x = dict(x) if self._model is None else arguments_in(x, self._model, self._example)
            if not any(isinstance(value, Tensor) for value in (x.values() if isinstance(x, dict) else [x])):
                raise LayerCollapseError(
                    f"{self.argument}: expected batches that are a tensor, a tuple that starts with one, or a dict of "
                    f"arguments of the model, got {type(batch).__name__}"
                )
            empty = False
            yield x if self._device is None else pytree.tree_map_only(Tensor, lambda t: t.to(self._device), x)
        if empty:
            raise LayerCollapseError(f"{self.argument}: expected at least one batch, got an empty iterable")

    def first(self, samples: int) -> Any:
        """The first samples, as example inputs: a tuple with one tensor, or a dict."""
        batch = pytree.tree_map_only(Tensor, lambda t: t[:samples] if t.ndim else t, next(iter(self)))
        return (batch,) if isinstance(batch, Tensor) else batch


@torch.no_grad()
def measure_entropy(
    model: nn.Module, inputs: Iterable[Any], *, patterns: bool = False, group: Any = None
) -> EntropyReport:
    """The sign entropy of every site over all batches (tensors or dicts), in the mode the model is in.

    With `patterns`, also the joint patterns of the signs; over all processes of a group, as `EntropyProbe` has it.
    """
    with EntropyProbe(model, patterns=patterns, group=group) as probe:
        for batch in inputs:
            args, kwargs = call_arguments(batch)
            model(*args, **kwargs)
    return probe.report()
