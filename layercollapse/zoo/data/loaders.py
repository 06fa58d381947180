"""Parts that are read batch by batch: images that are decoded by worker processes, and loaders of the user's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo.data.shares import Every, Places, Share
from layercollapse.zoo.data.split import DataSet, Samples, checked_batch_size
from layercollapse.zoo.data.transforms import Transform

MOST_WORKERS = 4
LABELS = ("labels", "label", "targets", "target")


@dataclass(frozen=True)
class Decoded:
    """A part whose samples are made when they are needed.

    Attributes:
        samples: gives (input, label) by index, without chance; what is measured.
        training: the same with crops by chance; what is trained on.
        workers: processes that decode; 0 decodes in this one.
        device: where the batches go.
        rank: of the process that has a share of it.
        size: how many there are.
    """

    samples: Dataset
    training: Dataset
    workers: int
    device: torch.device | str = "cpu"
    rank: int = 0
    size: int = 1

    def __len__(self) -> int:
        return len(self.samples)  # type: ignore[arg-type]  # a data set without a length is none of ours

    def to(self, device: torch.device | str) -> Decoded:
        """The same part, whose batches go to another device."""
        return replace(self, device=device)

    def share(self, rank: int, size: int) -> Decoded:
        """The part as one of `size` processes has it; see `Part.share`."""
        return replace(self, rank=rank, size=size)

    def batches(self, batch_size: int) -> Loaded:
        """A re-iterable of (inputs, labels) in order; the last batch may be smaller."""
        return self._loaded(self.samples, batch_size)

    def shuffled(self, batch_size: int) -> Loaded:
        """A re-iterable of (inputs, labels): each pass in a new random order, without a last, smaller batch."""
        return self._loaded(self.training, batch_size, shuffled=True)

    def _loaded(self, samples: Dataset, batch_size: int, shuffled: bool = False) -> Loaded:
        size = checked_batch_size(batch_size, len(self))
        share = Share(Places(len(self), size, self.rank, self.size, shuffled))
        return Loaded(DataLoader(samples, batch_sampler=share, num_workers=self._needed(size)), self.device)

    def _needed(self, batch_size: int) -> int:
        """No more processes than there are batches."""
        return min(self.workers, -(-len(self) // batch_size) if len(self) > batch_size else 0)


def from_pictures(
    name: str,
    parts: Mapping[str, Callable[[Transform], Dataset]],
    transform: Transform,
    *,
    workers: int | None,
    classes: Sequence[int | str],
    num_classes: int,
    notes: tuple[str, ...],
) -> DataSet:
    """A data set whose parts are decoded when they are needed.

    Args:
        name: of the data.
        parts: for train, validation and test, what makes (tensor (C, H, W), class) by index, given a transform.
        transform: as it measures; the training part has its chances as well.
        workers: as for `Decoded`; None: one for each processor, `MOST_WORKERS` at most.
        classes: as for `DataSet`.
        num_classes: the same.
        notes: the same.
    """
    count = workers_by_default() if workers is None else workers
    decoded = {part: Decoded(of(transform), of(replace(transform, training=True)), count) for part, of in parts.items()}
    return DataSet(
        name,
        decoded["train"],
        decoded["validation"],
        decoded["test"],
        num_classes,
        shape=transform.shape,
        box=transform.box,
        classes=tuple(classes),
        notes=notes,
    )


@dataclass(frozen=True)
class Loaded:
    """Batches of a loader as (inputs, labels) on a device.

    Attributes:
        loader: its batches are pairs, or dicts with the labels among them.
        device: where they go.
        argument: what messages call it.
        rank: from which sample of a batch on every `size`-th is taken.
        size: 1: all are.
    """

    loader: Any
    device: torch.device | str
    argument: str = "data"
    rank: int = 0
    size: int = 1

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Samples, Tensor]]:
        given = 0
        try:
            for batch in self.loader:
                inputs, labels = pair(batch, self.argument)
                if self.size > 1 and len(labels) < 2 * self.size:  # batch norms need two samples
                    continue
                given += 1
                yield pytree.tree_map_only(Tensor, self._taken, (inputs, labels))
            if self.size > 1 and not given:
                raise LayerCollapseError(
                    f"{self.argument}: expected batches of at least 2 samples for each of {self.size} processes, got "
                    "none"
                )
        except LayerCollapseError as error:
            # A worker's error comes with the worker's traceback in front of what it says.
            last = next(line for line in reversed(str(error).splitlines()) if line.strip())
            raise LayerCollapseError(last.rpartition("LayerCollapseError: ")[2]) from error

    def _taken(self, x: Tensor) -> Tensor:
        own = x[self.rank :: self.size] if self.size > 1 else x
        return own.to(self.device, non_blocking=True)


def pair(batch: Any, argument: str) -> tuple[Samples, Tensor]:
    """Inputs and labels of a batch: a pair, or a dict of arguments with labels among them.

    Raises:
        LayerCollapseError: it is something else.
    """
    if isinstance(batch, Mapping):
        named = [name for name in LABELS if name in batch]
        inputs: Any = {name: value for name, value in batch.items() if name not in LABELS}
        labels = batch[named[0]] if named else None
    elif isinstance(batch, list | tuple) and len(batch) == 2:
        inputs, labels = batch
    else:
        inputs, labels = batch, None
    if (
        not isinstance(inputs, Tensor | Mapping)
        or not isinstance(labels, Tensor)
        or labels.ndim != 1
        or labels.is_floating_point()
    ):
        kind = f"{len(batch)} values" if isinstance(batch, list | tuple) else f"a {type(batch).__name__}"
        names = f" with {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else ""
        raise LayerCollapseError(
            f"{argument}: expected batches (inputs, labels), or dicts with {LABELS[0]!r}, whose labels are a tensor of "
            f"whole numbers (N,), got {kind}{names}"
        )
    return (dict(inputs) if isinstance(inputs, Mapping) else inputs), labels.long()


@dataclass(frozen=True)
class Given:
    """A part that is a loader of the user's: its batches are as large and in such an order as it makes them.

    Attributes:
        loader: the user's; re-iterable.
        samples: how many there are.
        device: where the batches go.
        argument: what messages call it.
        rank: of the process that has a share of it.
        size: how many there are.
    """

    loader: Iterable[Any]
    samples: int
    device: torch.device | str = "cpu"
    argument: str = "data"
    rank: int = 0
    size: int = 1

    def __len__(self) -> int:
        return self.samples

    def to(self, device: torch.device | str) -> Given:
        """The same part, whose batches go to another device."""
        return replace(self, device=device)

    def share(self, rank: int, size: int) -> Given:
        """The part as one of `size` processes has it; see `Part.share`. All of them read all batches."""
        return replace(self, rank=rank, size=size)

    def batches(self, batch_size: int) -> Loaded:
        """The loader's batches."""
        return Loaded(Every(self.loader, self.rank, self.size), self.device, self.argument)

    def shuffled(self, batch_size: int) -> Loaded:
        """The loader's batches, in the order in which it gives them; those too small to be divided are left out."""
        return Loaded(self.loader, self.device, self.argument, self.rank, self.size)


def from_loaders(name: str, made: Any) -> DataSet:
    """A data set of what a factory returned: three loaders as a tuple or by name.

    Args:
        name: of the data.
        made: (train, validation, test), or a dict of these and, if known, ``num_classes``.

    Raises:
        LayerCollapseError: they are no such loaders; the message says what is wrong with which.
    """
    names = ("train", "validation", "test")
    if isinstance(made, list | tuple) and len(made) == 3:
        made = dict(zip(names, made, strict=True))
    if not isinstance(made, Mapping) or not set(names) <= set(made):
        got = ", ".join(map(str, made)) if isinstance(made, Mapping) else f"a {type(made).__name__}"
        raise LayerCollapseError(f"data: expected loaders (train, validation, test), or a dict of them, got {got}")
    parts, most, shape = dict[str, Given](), -1, None
    for part in names:
        loader, argument = made[part], f"data: {part}"
        if isinstance(loader, Iterator) or not isinstance(loader, Iterable) or not hasattr(loader, "__len__"):
            raise LayerCollapseError(
                f"{argument}: expected batches with a length that can be gone through again (a DataLoader, a list), "
                f"got a {type(loader).__name__}"
            )
        labels = [pair(batch, argument)[1] for batch in loader]
        if not labels or not sum(map(len, labels)):
            raise LayerCollapseError(f"{argument}: expected at least one batch with a sample, got none")
        low, high = (int(x) for x in torch.cat(labels).aminmax())
        if low < 0:
            raise LayerCollapseError(f"{argument}: expected labels from 0 on, got {low}")
        if part != "train" and high > most and "num_classes" not in made:
            raise LayerCollapseError(
                f"{argument}: expected labels up to {most}, the largest in train, got {high}; num_classes beside the "
                "loaders says how many there are"
            )
        most = max(most, high)
        parts[part] = Given(loader, sum(map(len, labels)), argument=argument)
    first, _ = pair(next(iter(made["train"])), "data: train")
    if isinstance(first, Tensor) and first.ndim == 4:
        shape = (int(first.shape[1]), int(first.shape[2]), int(first.shape[3]))
    classes = int(made.get("num_classes", most + 1))
    return DataSet(name, parts["train"], parts["validation"], parts["test"], classes, shape, kind="samples")


def workers_by_default() -> int:
    """Processes that decode: one for each processor, four at most."""
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
