"""Optimizers and learning rate schedules by name, with what each defaults to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from layercollapse.errors import LayerCollapseError

GAMMA = 0.1  # what a milestone multiplies the learning rate with


@dataclass(frozen=True)
class Defaults:
    """What an optimizer takes where nothing else is said; networks that are trained already take a tenth of `lr`."""

    lr: float
    weight_decay: float


OPTIMIZERS = {
    "sgd": Defaults(lr=0.1, weight_decay=5e-4),
    "adam": Defaults(lr=1e-3, weight_decay=0.0),
    "adamw": Defaults(lr=1e-3, weight_decay=0.01),
}
SCHEDULES = ("one-cycle", "milestones", "linear", "constant")


def make_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    lr: float | None = None,
    momentum: float = 0.9,
    weight_decay: float | None = None,
) -> torch.optim.Optimizer:
    """An optimizer by its name.

    Args:
        name: one of `OPTIMIZERS`.
        parameters: what it trains; those that are frozen are left out.
        lr: learning rate, by default as in the table.
        momentum: of SGD.
        weight_decay: by default as in the table.

    Raises:
        LayerCollapseError: unknown name, or nothing to train.
    """
    if name not in OPTIMIZERS:
        raise LayerCollapseError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {name!r}")
    defaults = OPTIMIZERS[name]
    lr = defaults.lr if lr is None else lr
    decay = defaults.weight_decay if weight_decay is None else weight_decay
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise LayerCollapseError("model: expected parameters to train, got none that require a gradient")
    if name == "sgd":
        return torch.optim.SGD(trained, lr=lr, momentum=momentum, weight_decay=decay)
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return kind(trained, lr=lr, weight_decay=decay)


def make_schedule(
    name: str, optimizer: torch.optim.Optimizer, *, epochs: int, batches: int, milestones: Sequence[int] = ()
) -> LRScheduler:
    """A learning rate schedule by its name, to be stepped after every optimizer step.

    Args:
        name: ``"one-cycle"`` (up to the learning rate and down again), ``"milestones"`` (a tenth from each on),
            ``"linear"`` (from the learning rate down to zero) or ``"constant"``.
        optimizer: whose learning rate is the highest.
        epochs: of the training.
        batches: optimizer steps of an epoch.
        milestones: epochs from 1 on, after which the learning rate is a tenth.

    Raises:
        LayerCollapseError: unknown name, or milestones that another schedule would not read.
    """
    if name not in SCHEDULES:
        raise LayerCollapseError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {name!r}")
    if (name == "milestones") != bool(milestones):
        raise LayerCollapseError(
            f"milestones: expected epochs with schedule 'milestones' alone, got {list(milestones)} with {name!r}"
        )
    steps = epochs * batches
    if name == "one-cycle":
        return OneCycleLR(optimizer, max_lr=[group["lr"] for group in optimizer.param_groups], total_steps=steps)
    factors: dict[str, Callable[[int], float]] = {
        "milestones": lambda step: GAMMA ** sum(step >= batches * epoch for epoch in milestones),
        "linear": lambda step: max(0.0, 1 - step / steps),
        "constant": lambda step: 1.0,
    }
    return LambdaLR(optimizer, factors[name])
