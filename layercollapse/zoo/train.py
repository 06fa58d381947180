"""The training recipe of the built-in data: SGD with momentum, one-cycle learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layercollapse._util.modes import evaluating
from layercollapse.errors import LayerCollapseError
from layercollapse.zoo.data.split import Split

if TYPE_CHECKING:
    from layercollapse.prune.pruner import Pruner

BATCH_SIZE = 128
EVALUATION_BATCH = 500


def fit(
    model: nn.Module,
    split: Split,
    *,
    epochs: int,
    lr: float = 0.1,
    batch_size: int = BATCH_SIZE,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    flip: bool = False,
    pruner: Pruner | None = None,
    progress: Callable[[], object] | None = None,
) -> None:
    """Train in place with cross-entropy, on the device where the model and the split are.

    The order of the images comes from torch's global generator: seed it to repeat a run.

    Args:
        model: images (N, C, H, W) -> logits (N, classes).
        split: what to train on.
        epochs: passes over the split.
        lr: peak of the one-cycle schedule.
        batch_size: images per step.
        momentum: of SGD.
        weight_decay: of SGD, on every parameter.
        flip: whether half of the images of a batch, by chance, are mirrored left to right.
        pruner: keeps its pruned weights at zero through momentum and weight decay.
        progress: called after every optimizer step.

    Raises:
        LayerCollapseError: no epochs, no images, or a loss that is no longer finite.
    """
    if epochs < 1:
        raise LayerCollapseError(f"epochs: expected at least 1, got {epochs}")
    if len(split) == 0:
        raise LayerCollapseError("split: expected at least one image, got an empty split")
    batches = split.shuffled(batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=epochs * len(batches))
    attached = None if pruner is None else pruner.attach(optimizer)
    model.train()
    try:
        for epoch in range(epochs):
            for images, labels in batches:
                optimizer.zero_grad(set_to_none=True)
                loss = F.cross_entropy(model(_mirrored(images) if flip else images), labels)
                loss.backward()
                optimizer.step()
                schedule.step()
                if progress is not None:
                    progress()
            if not torch.isfinite(loss):
                raise LayerCollapseError(
                    f"lr: expected training to converge, got loss {loss.item()} in epoch {epoch + 1}; "
                    f"try less than {lr:g}"
                )
    finally:
        if attached is not None:
            attached.remove()


def _mirrored(images: Tensor) -> Tensor:
    """A batch (N, C, H, W) of which half of the images, by chance, are mirrored left to right."""
    some = torch.rand(len(images), device=images.device) < 0.5
    return torch.where(some[:, None, None, None], images.flip(-1), images)


@torch.inference_mode()
def accuracy(model: nn.Module, split: Split) -> float:
    """Top-1 in percent, in evaluation mode; the model's mode is put back afterwards."""
    if len(split) == 0:
        raise LayerCollapseError("split: expected at least one image, got an empty split")
    with evaluating(model):
        correct = sum(int((model(x).argmax(1) == labels).sum()) for x, labels in split.batches(EVALUATION_BATCH))
    return 100 * correct / len(split)
