"""Whether a model's outputs still depend on its input, seen on samples: paths of weights may lead to it through neurons
that are always off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from layercollapse._util.modes import evaluating
from layercollapse._util.spread import Spread
from layercollapse.errors import LayerCollapseError
from layercollapse.graph.agreement import tensors_of
from layercollapse.graph.export import call_arguments, copied, describe, reason

# An output is constant where it varies by no more than so many units in the last place of its largest value, ...
_UNITS = 16
# ... and by no more than this part of what it did before the step: half-precision outputs have few units.
_PART = 1e-3

Varying = dict[int, float]  # output that varied -> its spread


class Liveness:
    """The spread of a model's floating-point outputs over samples, before and after its weights change.

    An output counts as constant if it is so with the stored statistics of batch norms and with those of the samples as
    well: pruned layers make less than the stored statistics say, which training mends.

    Args:
        model: what is called, in evaluation mode.
        samples: what it is called with, two or more samples: a tensor, a tuple of arguments or a dict of them.
    """

    def __init__(self, model: nn.Module, samples: Any) -> None:
        self._arguments = call_arguments(samples)
        self._dtype = _dtype(model)

    def varying(self, model: nn.Module, decide: Callable[[bool], bool] = bool) -> Varying:
        """The outputs that depend on the sample, and by how much; those that do not can only be left aside.

        Args:
            model: what is called.
            decide: what all processes that call it take for an answer, given what one of them sees: those of sharded
                weights must make as many forward passes.
        """
        spread = _varying(self._spreads(model))
        if decide(not spread and _own_statistics(model)):
            spread = _varying(self._spreads(model, fresh=True))
        return spread

    def constant(self, model: nn.Module, before: Varying, decide: Callable[[bool], bool] = bool) -> bool:
        """Whether an output that varied before is a constant now; `decide` as for `varying`."""
        if not decide(bool(before)):
            return False
        dead = _constant(self._spreads(model), before)
        if decide(bool(dead) and _own_statistics(model)):
            dead &= _constant(self._spreads(model, fresh=True), before)
        return decide(bool(dead))

    def _spreads(self, model: nn.Module, fresh: bool = False) -> list[Spread]:
        args, kwargs = self._moved(model)
        with evaluating(model), _batch_statistics(model if fresh else None), torch.no_grad():
            try:
                outputs = tensors_of(model(*args, **kwargs))
            except (TypeError, ValueError, RuntimeError, IndexError) as error:
                raise LayerCollapseError(
                    f"samples: expected what the model can be called with, got {describe(args, kwargs)}: "
                    f"{reason(error)}"
                ) from error
        spreads = []
        for output in outputs:
            spreads.append(Spread())
            spreads[-1].add(output)
        return spreads

    def _moved(self, model: nn.Module) -> Any:
        """The arguments where the model is now, in the precision that it has now."""
        parameter = next(model.parameters(), None)
        device, dtype = None if parameter is None else parameter.device, _dtype(model)

        def moved(x: Tensor) -> Tensor:
            return x.to(device=device, dtype=dtype if x.dtype == self._dtype else x.dtype)

        return pytree.tree_map_only(Tensor, moved, copied(self._arguments))


def _dtype(model: nn.Module) -> torch.dtype | None:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)


def _is_constant(spread: Spread) -> bool:
    return spread.value is not None and spread.value <= _UNITS * spread.unit * spread.scale


def _varying(spreads: list[Spread]) -> Varying:
    return {i: one.value for i, one in enumerate(spreads) if one.unit and one.value and not _is_constant(one)}


def _constant(spreads: list[Spread], before: Varying) -> set[int]:
    """Which of the outputs that varied do not any more."""
    return {
        i
        for i, spread in enumerate(spreads)
        if i in before and spread.value is not None and _is_constant(spread) and spread.value <= _PART * before[i]
    }


def _own_statistics(model: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in model.modules())


@contextmanager
def _batch_statistics(model: nn.Module | None) -> Iterator[None]:
    """Batch norms of the model use the statistics of the batch inside; `evaluating` puts buffers and modes back.

    On several processes a `SyncBatchNorm` would wait for the others: it takes those of its own batch.
    """
    handles = []
    for module in () if model is None else model.modules():
        if isinstance(module, _BatchNorm):
            module.training = True
            if isinstance(module, nn.SyncBatchNorm):
                handles.append(module.register_forward_hook(_of_this_process))
                module.training = False
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _of_this_process(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    assert isinstance(module, nn.SyncBatchNorm)
    return nn.functional.batch_norm(args[0], None, None, module.weight, module.bias, training=True, eps=module.eps)
