"""A training inside a run that goes on after an interruption at the epoch where it was."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from layercollapse._util.ranks import Ranks
from layercollapse.errors import LayerCollapseError
from layercollapse.graph.export import reason
from layercollapse.pipeline import checkpoint, states
from layercollapse.pipeline.processes import from_first, same_weights
from layercollapse.prune.pruner import Pruner

ARGUMENT = "checkpoint"


class TrainingCheckpoint:
    """What `run` gives a training function that has an argument of this name, ``checkpoint``.

        def train(model, checkpoint):
            optimizer = torch.optim.AdamW(model.parameters())
            for epoch in checkpoint.epochs(10, optimizer=optimizer):
                ...

    Args:
        model: what is trained.
        pruner: of the model, where there is a folder.
        folder: where the states are; None keeps none.
        label: of the training, which is kept with its state.
        before: the state of this training that `interrupted` has found; None begins it.
        extra: gives what is kept with the state.
        ranks: the processes that train together; each keeps the states of its objects.
    """

    def __init__(
        self,
        model: nn.Module,
        pruner: Pruner | None = None,
        folder: Path | None = None,
        *,
        label: int = 0,
        before: Mapping[str, Any] | None = None,
        extra: Callable[[], Any] = lambda: None,
        ranks: Ranks | None = None,
    ) -> None:
        self._model, self._pruner, self._folder, self._label, self._extra = model, pruner, folder, label, extra
        self._before, self._ranks = before, ranks or Ranks()
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
            if epoch + 1 < total and self._folder is not None:
                self._save(self._folder, epoch + 1, total, objects)

    def _save(self, folder: Path, done: int, total: int, objects: Mapping[str, Any]) -> None:
        assert self._pruner is not None
        masks = self._pruner.state_dict()
        state = {
            "label": self._label,
            "done": done,
            "total": total,
            "objects": {name: value.state_dict() for name, value in objects.items()},
            "random": states.random_state(),
        }
        if self._ranks.first:
            tensors, header = checkpoint.packed(self._model)
            state |= {"extra": self._extra(), "model": tensors, "header": header, "masks": masks}
        own = _file(folder, done, self._ranks.rank, self._ranks.size)
        self._ranks.together(lambda: states.save(own, state))
        if self._ranks.first:  # those of the epochs before are of no use once all have written theirs
            clear(folder, but=done)

    def _restored(self, total: int, objects: Mapping[str, Any]) -> int:
        """How many epochs are done; the objects are as they were after these."""
        state, self._before = self._before, None  # its weights need not be kept through the training
        if state is None:
            return 0
        if state["total"] != total or state["objects"].keys() != objects.keys():
            got, want = (
                f"{epochs} epochs with {', '.join(names) or 'nothing'}"
                for epochs, names in ((total, objects), (state["total"], state["objects"]))
            )
            raise LayerCollapseError(
                f"checkpoint: expected the training that was interrupted, of {want}, got {got}; without the files "
                f"training-* in {self._folder} it begins anew"
            )
        for name, value in objects.items():
            try:
                value.load_state_dict(state["objects"][name])
            except Exception as error:
                raise LayerCollapseError(
                    f"{name}: expected one that takes the state of the training that was interrupted, got "
                    f"{type(value).__name__}, which stopped with {reason(error)}; without the files training-* in "
                    f"{self._folder} it begins anew"
                ) from error
        states.set_random_state(state["random"])
        return state["done"]


def _file(folder: Path, done: int | str, rank: int | str, size: int | str) -> Path:
    """Where one of `size` processes keeps its state after so many epochs."""
    return folder / f"training-{done}-{rank}of{size}.safetensors"


def clear(folder: Path, but: int | None = None) -> None:
    """Remove the states of interrupted trainings, but those after so many epochs."""
    for path in folder.glob(_file(folder, "*", "*", "*").name):
        if but is None or not path.name.startswith(f"training-{but}-"):
            path.unlink()


def interrupted(folder: Path, label: int, ranks: Ranks) -> dict[str, Any] | None:
    """The state of the training that was interrupted, if it was the one of this label, by as many processes."""

    def latest() -> int | None:
        """The most epochs after which every process has written its state."""
        first = folder.glob(_file(folder, "*", 0, ranks.size).name)
        done = (int(path.name.split("-")[1]) for path in first)
        every = [n for n in done if all(_file(folder, n, rank, ranks.size).is_file() for rank in range(ranks.size))]
        return max(every, default=None)

    done = from_first(ranks, latest)
    if done is None:
        return None
    common = states.load(_file(folder, done, 0, ranks.size))
    if common["label"] != label:
        return None
    return common if ranks.first else {**common, **states.load(_file(folder, done, ranks.rank, ranks.size))}


def put_back(state: Mapping[str, Any], model: nn.Module, pruner: Pruner) -> None:
    """Put the weights, masks and linear sites of an interrupted training into the model and its pruner."""
    pruner.load_state_dict(state["masks"])
    checkpoint.restore(model, *checkpoint.unpacked(state["model"], state["header"]))


def call(train: Callable[..., object], model: nn.Module, checkpoint: TrainingCheckpoint) -> None:
    """Call a training function, with the checkpoint if it has an argument of that name.

    Of several processes all have the weights of the first afterwards: DistributedDataParallel leaves to each what its
    own last batch made of the statistics of batch norms. An argument with another default than None is the user's own.

    Raises:
        LayerCollapseError: processes have trained models of different kinds.
    """
    try:
        parameter = inspect.signature(train).parameters.get(ARGUMENT)
    except (TypeError, ValueError):  # a function without a signature
        parameter = None
    takes = parameter is not None and (parameter.default is None or parameter.default is parameter.empty)
    train(model, **({ARGUMENT: checkpoint} if takes else {}))
    same_weights(model, checkpoint._ranks)
