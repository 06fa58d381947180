"""A training inside a run that goes on after an interruption at the epoch where it was."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from layercollapse.errors import LayerCollapseError
from layercollapse.pipeline import checkpoint, states
from layercollapse.prune.pruner import Pruner

FILE = "training.safetensors"
ARGUMENT = "checkpoint"


class TrainingCheckpoint:
    """What `run` gives a training function that has an argument of this name, ``checkpoint``.

        def train(model, checkpoint):
            optimizer = torch.optim.AdamW(model.parameters())
            for epoch in checkpoint.epochs(10, optimizer=optimizer):
                ...

    Args:
        model: what is trained.
        pruner: of the model, where there is a file.
        file: where the state is; None keeps none.
        label: of the training; a state of another is not gone on with.
        extra: gives what is kept with the state.
    """

    def __init__(
        self,
        model: nn.Module,
        pruner: Pruner | None = None,
        file: Path | None = None,
        label: int = 0,
        extra: Callable[[], Any] = lambda: None,
    ) -> None:
        self._model, self._pruner, self._file, self._label, self._extra = model, pruner, file, label, extra
        self._begun = False

    def epochs(self, total: int, **objects: Any) -> Iterator[int]:
        """The epochs that are left, of 0 to `total` - 1; after each but the last the state of the training is written.

        Where an interrupted run goes on, the first is the one that was not finished, and the objects and the random
        number generators of torch, NumPy and Python have the states that they had when it began.

        Args:
            total: epochs of the training.
            objects: what has a state beside the model: the optimizer, schedulers, a gradient scaler, an average of the
                weights; all with ``state_dict`` and ``load_state_dict``, by names of your choice.

        Raises:
            LayerCollapseError: a second call in one training; objects without a state, or with one that cannot be
                written; other objects, or another number of epochs, than the training that was interrupted.
        """
        if isinstance(total, bool) or not isinstance(total, int) or total < 0:
            raise LayerCollapseError(f"total: expected a number of epochs, got {total!r}")
        for name, value in objects.items():
            if not all(callable(getattr(value, method, None)) for method in ("state_dict", "load_state_dict")):
                raise LayerCollapseError(
                    f"{name}: expected an object with state_dict and load_state_dict, got {type(value).__name__}"
                )
        if self._begun:
            raise LayerCollapseError("checkpoint: expected one call of epochs in a training, got a second")
        self._begun = True
        return self._epochs(total, objects)

    def _epochs(self, total: int, objects: Mapping[str, Any]) -> Iterator[int]:
        for epoch in range(self._restored(total, objects), total):
            yield epoch
            if epoch + 1 < total and self._file is not None:
                self._save(epoch + 1, total, objects)

    def _save(self, done: int, total: int, objects: Mapping[str, Any]) -> None:
        assert self._file is not None
        assert self._pruner is not None
        tensors, header = checkpoint.packed(self._model)
        state = {
            "label": self._label,
            "done": done,
            "total": total,
            "extra": self._extra(),
            "model": tensors,
            "header": header,
            "masks": self._pruner.state_dict(),
            "objects": {name: value.state_dict() for name, value in objects.items()},
            "random": states.random_state(),
        }
        states.save(self._file, state)

    def _restored(self, total: int, objects: Mapping[str, Any]) -> int:
        """How many epochs are done; the objects are as they were after these."""
        state = interrupted(self._file, self._label)
        if state is None:
            return 0
        if state["total"] != total or state["objects"].keys() != objects.keys():
            got, want = (
                f"{epochs} epochs with {', '.join(names) or 'nothing'}"
                for epochs, names in ((total, objects), (state["total"], state["objects"]))
            )
            raise LayerCollapseError(f"checkpoint: expected the training that was interrupted, of {want}, got {got}")
        for name, value in objects.items():
            value.load_state_dict(state["objects"][name])
        states.set_random_state(state["random"])
        return state["done"]


def interrupted(file: Path | None, label: int) -> dict[str, Any] | None:
    """The state of the training that was interrupted, if it was the one of this label."""
    if file is None or not file.is_file():
        return None
    state = states.load(file)
    return state if state["label"] == label else None


def put_back(state: Mapping[str, Any], model: nn.Module, pruner: Pruner) -> None:
    """Put the weights, masks and linear sites of an interrupted training into the model and its pruner."""
    pruner.load_state_dict(state["masks"])
    checkpoint.restore(model, *checkpoint.unpacked(state["model"], state["header"]))


def call(train: Callable[..., object], model: nn.Module, checkpoint: TrainingCheckpoint) -> None:
    """Call a training function, with the checkpoint if it has an argument of that name."""
    try:
        takes = ARGUMENT in inspect.signature(train).parameters
    except (TypeError, ValueError):  # a function without a signature
        takes = False
    train(model, **({ARGUMENT: checkpoint} if takes else {}))
