"""The training loop of the command line; by default SGD with momentum and a one-cycle learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layercollapse._util.modes import evaluating
from layercollapse._util.ranks import Ranks
from layercollapse.errors import LayerCollapseError
from layercollapse.graph.agreement import tensors_of
from layercollapse.graph.export import arguments_in, call_arguments, describe
from layercollapse.zoo.data.split import Part, Samples
from layercollapse.zoo.optimizers import make_optimizer, make_schedule

if TYPE_CHECKING:
    from layercollapse.prune.pruner import Pruner

BATCH_SIZE = 128
EVALUATION_BATCH = 500


def fit(
    model: nn.Module,
    split: Part,
    *,
    epochs: int,
    lr: float | None = None,
    batch_size: int = BATCH_SIZE,
    optimizer: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float | None = None,
    schedule: str = "one-cycle",
    milestones: Sequence[int] = (),
    flip: bool = False,
    pruner: Pruner | None = None,
    progress: Callable[[], object] | None = None,
    epochs_left: Callable[..., Iterable[int]] | None = None,
) -> None:
    """Train in place with cross-entropy, on the device where the model and the split are.

    The order of the samples comes from torch's global generator: seed it to repeat a run.

    Args:
        model: images (N, C, H, W), or arguments by name -> logits (N, classes), alone or first in what it returns.
        split: what to train on.
        epochs: passes over the split.
        lr: the highest learning rate, by default that of `layercollapse.zoo.optimizers.OPTIMIZERS`: 0.1 for SGD.
        batch_size: samples per step.
        optimizer: ``"sgd"``, ``"adam"`` or ``"adamw"``.
        momentum: of SGD.
        weight_decay: on every parameter, by default that of the same table: 5e-4 for SGD.
        schedule: see `layercollapse.zoo.optimizers.make_schedule`.
        milestones: the same.
        flip: whether half of the images of a batch, by chance, are mirrored left to right.
        pruner: keeps its pruned weights at zero through momentum and weight decay.
        progress: called after every optimizer step, also for those that an earlier process has taken.
        epochs_left: the `epochs` of the checkpoint that `layercollapse.run` gives, for a training that goes on where it
            was interrupted.

    Raises:
        LayerCollapseError: no epochs, no samples, other inputs than images to flip, or a loss that is no longer finite.
    """
    if epochs < 1:
        raise LayerCollapseError(f"epochs: expected at least 1, got {epochs}")
    if len(split) == 0:
        raise LayerCollapseError("split: expected at least one sample, got an empty split")
    batches = split.shuffled(batch_size)
    stepper = make_optimizer(optimizer, model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    rates = make_schedule(schedule, stepper, epochs=epochs, batches=len(batches), milestones=milestones)
    highest = stepper.param_groups[0].get("max_lr", stepper.param_groups[0].get("initial_lr"))
    attached = None if pruner is None else pruner.attach(stepper)
    model.train()
    try:
        done = 0
        left = range(epochs) if epochs_left is None else epochs_left(epochs, optimizer=stepper, schedule=rates)
        for epoch in left:
            for _ in range((epoch - done) * len(batches)):
                if progress is not None:
                    progress()
            done = epoch + 1
            for inputs, labels in batches:
                stepper.zero_grad(set_to_none=True)
                loss = F.cross_entropy(logits(model, _mirrored(inputs) if flip else inputs), labels)
                loss.backward()
                stepper.step()
                rates.step()
                if progress is not None:
                    progress()
            if not torch.isfinite(loss):
                raise LayerCollapseError(
                    f"lr: expected training to converge, got loss {loss.item()} in epoch {epoch + 1}; "
                    f"try less than {highest:g}"
                )
    finally:
        if attached is not None:
            attached.remove()


def _mirrored(images: Samples) -> Tensor:
    """A batch (N, C, H, W) of which half of the images, by chance, are mirrored left to right."""
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise LayerCollapseError(f"flip: expected batches of images (N, C, H, W), got {describe(images)}")
    some = torch.rand(len(images), device=images.device) < 0.5
    return torch.where(some[:, None, None, None], images.flip(-1), images)


def logits(model: nn.Module, inputs: Samples) -> Tensor:
    """What a model makes of a batch, (N, classes): its output, or the first tensor of it, ``logits`` where it has that.

    Raises:
        LayerCollapseError: it is not of this shape.
    """
    args, kwargs = call_arguments(arguments_in(inputs, model) if isinstance(inputs, Mapping) else inputs)
    output = model(*args, **kwargs)
    found = output["logits"] if isinstance(output, Mapping) and "logits" in output else output
    found = found if isinstance(found, Tensor) else next(iter(tensors_of(found)), found)
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise LayerCollapseError(f"model: expected logits (N, classes), got {describe(output)}")
    return found


@torch.inference_mode()
def accuracy(model: nn.Module, split: Part, batch_size: int = EVALUATION_BATCH, ranks: Ranks | None = None) -> float:
    """Top-1 in percent, in evaluation mode; the model's mode is put back afterwards.

    With `ranks`, of what all processes have of a part that they share.
    """
    if len(split) == 0:
        raise LayerCollapseError("split: expected at least one sample, got an empty split")
    with evaluating(model):
        correct = sum(int((logits(model, x).argmax(1) == labels).sum()) for x, labels in split.batches(batch_size))
    if ranks is not None:
        correct = int(ranks.sum_(torch.tensor([correct], device="cpu")))
    return 100 * correct / len(split)
