"""Pruned weights at zero while a model trains, whatever changes the weights.

A hook on the optimizer's step is not enough: sharpness-aware minimization moves the weights between the two forward
passes of a step, schedule-free optimizers move them for evaluation, wrappers write after the step that they wrap, and
an average of weights has what was there before they were pruned. So zeros are put back after every step, and before
every forward pass, which is where weights are read.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from layercollapse._util.sharded import gathers_before, reshard
from layercollapse.errors import LayerCollapseError

if TYPE_CHECKING:
    from layercollapse.prune.pruner import Pruner


class ZerosKept:
    """Puts pruned weights back to zero until it is removed, and once more then. Also a context manager.

    It may be dropped: then it ends with the model, which it does not keep in memory.

    Args:
        pruner: has the masks and the model.
    """

    def __init__(self, pruner: Pruner) -> None:
        self._before_forward = BeforeForward(pruner)
        hook = weakref.ref(self._before_forward)  # torch has the hooks of all optimizers for ever

        def after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            if (kept := hook()) is not None and kept.pruner is not None:
                _put_back(kept.pruner, optimizer)

        # First of all hooks: those of others may read weights.
        self._handles = (
            register_optimizer_step_post_hook(after_step),
            pruner.model.register_forward_pre_hook(self._before_forward, prepend=True),
        )

    def remove(self) -> None:
        """End it, with zeros; a second time does nothing."""
        pruner = self._before_forward.pruner
        if pruner is None:
            return
        for handle in self._handles:
            handle.remove()
        self._before_forward.pruner = None
        pruner.apply()

    def __enter__(self) -> ZerosKept:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _put_back(pruner: Pruner, optimizer: torch.optim.Optimizer) -> None:
    """Zeros, if the optimizer has a parameter of the model."""
    reshard(pruner.model)
    own = {id(parameter) for parameter in pruner.model.parameters()}
    if any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        with torch.no_grad():
            pruner._masks.apply(pruner.model)  # what is no parameter any more, but computed, is left alone


class BeforeForward:
    """The hook of a model, and of its copies: an average of weights starts as a deep copy.

    It is left out of code that is compiled or exported: the weights are no constants there.
    """

    def __init__(self, pruner: Pruner | None) -> None:
        self.pruner = pruner

    def __call__(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        if self.pruner is not None and not torch.compiler.is_compiling():
            if gathers_before(model, self):
                raise LayerCollapseError(
                    "attach: expected it to be called after fully_shard, got a forward pass in which the weights are "
                    "gathered before they are put back to zero"
                )
            self.pruner._masks.apply(model)

    def __deepcopy__(self, memo: dict[int, Any]) -> BeforeForward:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return BeforeForward, (None,)
