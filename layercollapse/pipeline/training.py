"""What a run does around a user's training loop, and what a strategy is told of the trainings before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from layercollapse.prune.pruner import Pruner
from layercollapse.report.record import Record
from layercollapse.strategies import Taken


def taken(record: Record, best: int) -> list[Taken]:
    """The steps of a run, for a strategy; `best` is the one that would be collapsed now."""
    limit = record.steps[0].top1_validation - record.settings["max_drop"]
    return [
        Taken(
            tuple(step.linear),
            step.top1_validation >= limit,
            step.step == best,
            dict(zip(record.sites, step.entropy, strict=True)),
        )
        for step in record.steps
    ]


@contextmanager
def zeros_kept(pruner: Pruner, model: nn.Module) -> Iterator[None]:
    """Inside, every step of a torch optimizer that holds a parameter of the model is followed by `apply`."""
    parameters = {id(parameter) for parameter in model.parameters()}

    def after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if any(id(parameter) in parameters for group in optimizer.param_groups for parameter in group["params"]):
            pruner.apply()

    handle = register_optimizer_step_post_hook(after_step)
    try:
        yield
    finally:
        handle.remove()
        pruner.apply()
