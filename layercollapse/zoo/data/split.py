"""A data set of three parts, parts that are in memory, and the stratified way to make them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo.data.shares import Places

SPLIT_SEED = 0  # the splits are part of the data set: they do not follow the seed of a run
FRACTIONS = (0.7, 0.1, 0.2)  # train, validation, test, of data that are not divided
# What files and folders of the parts are called.
PART_NAMES = {"train": ("train", "training"), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}

Samples: TypeAlias = "Tensor | dict[str, Tensor]"


class Feed(Protocol):
    """A re-iterable of batches (inputs, labels)."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[Samples, Tensor]]: ...


class Part(Protocol):
    """One of the three parts of a data set, on one device: as many inputs as labels (N,) int64."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> Part:
        """The same part on another device."""
        ...

    def share(self, rank: int, size: int) -> Part:
        """The part as one of `size` processes has it: of its length, but with fewer or smaller batches.

        Of `batches` it has every size-th, whole, so that what is computed of it is the same as in one process; of each
        of `shuffled` every size-th sample. All processes must have seeded torch's global generator alike.
        """
        ...

    def batches(self, batch_size: int) -> Feed:
        """All samples in order; the last batch may be smaller."""
        ...

    def shuffled(self, batch_size: int) -> Feed:
        """Each pass in a new random order (torch's global generator), without a last, smaller batch."""
        ...


@dataclass(frozen=True)
class Split:
    """A part in memory.

    Attributes:
        inputs: images (N, C, H, W) float32, normalised; or arguments of the model by name, each a tensor (N, ...).
        labels: (N,) int64.
        rank: of the process that has a share of it.
        size: how many there are.
    """

    inputs: Samples
    labels: Tensor
    rank: int = 0
    size: int = 1

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        """The same part on another device."""
        inputs = pytree.tree_map(lambda x: x.to(device), self.inputs)
        return replace(self, inputs=inputs, labels=self.labels.to(device))

    def share(self, rank: int, size: int) -> Split:
        """The part as one of `size` processes has it; see `Part.share`."""
        return replace(self, rank=rank, size=size)

    def batches(self, batch_size: int) -> Batches:
        """A re-iterable of (inputs, labels) in order; the last batch may be smaller."""
        return Batches(self, batch_size, shuffled=False)

    def shuffled(self, batch_size: int) -> Batches:
        """A re-iterable of (inputs, labels): each pass in a new random order (torch's global generator).

        A last, smaller batch is left out, so that batch norm never meets a batch of one image.
        """
        return Batches(self, batch_size, shuffled=True)


class Batches:
    """Batches by indexing tensors: on small images several times faster than a DataLoader."""

    def __init__(self, split: Split, batch_size: int, *, shuffled: bool) -> None:
        self.split = split
        size = checked_batch_size(batch_size, len(split))
        self._places = Places(len(split), size, split.rank, split.size, shuffled, split.labels.device)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[tuple[Samples, Tensor]]:
        inputs, labels = self.split.inputs, self.split.labels
        for rows in self._places:
            yield pytree.tree_map(lambda x, rows=rows: x[rows], inputs), labels[rows]


def checked_batch_size(batch_size: int, samples: int) -> int:
    """A batch size that is no more than there are samples.

    Raises:
        LayerCollapseError: it is below 1.
    """
    if batch_size < 1:
        raise LayerCollapseError(f"batch_size: expected at least 1, got {batch_size}")
    return min(batch_size, max(1, samples))


@dataclass(frozen=True)
class Text:
    """What a model has to know of texts: its tokenizer, how many tokens that has, which pads, and the length."""

    tokenizer: Any
    vocabulary: int
    pad: int
    tokens: int


@dataclass(frozen=True)
class DataSet:
    """Three parts of one set of data; models are chosen on `validation` and reported on `test`.

    Attributes:
        name: for the console.
        train: what is trained on, and what the entropy is measured on.
        validation: chooses.
        test: is reported.
        num_classes: labels are below it.
        shape: (channels, height, width) of images; None for other inputs.
        box: every entry of the inputs lies between, for images black and white after the normalisation; None if that is
            not known.
        classes: the label in the files for each class, where they are not 0, 1, ... themselves.
        text: about texts, if it is texts.
        kind: the word for many samples.
        notes: what is to be known of the data, in sentences without a full stop.
    """

    name: str
    train: Part
    validation: Part
    test: Part
    num_classes: int
    shape: tuple[int, int, int] | None = None
    box: tuple[float, float] | None = None
    classes: tuple[int | str, ...] = ()
    text: Text | None = None
    kind: str = "images"
    notes: tuple[str, ...] = ()

    @property
    def in_channels(self) -> int | None:
        """Channels of the images."""
        return None if self.shape is None else self.shape[0]

    @property
    def image_size(self) -> int | tuple[int, int] | None:
        """Side of square images in pixels, or height and width."""
        if self.shape is None:
            return None
        return self.shape[1] if self.shape[1] == self.shape[2] else self.shape[1:]

    def to(self, device: torch.device | str) -> DataSet:
        """The same data on another device."""
        train, validation, test = (part.to(device) for part in (self.train, self.validation, self.test))
        return replace(self, train=train, validation=validation, test=test)


def stratified(labels: np.ndarray, fractions: tuple[float, ...]) -> list[np.ndarray]:
    """Divide indices by class: within every class a fixed random order is cut at the cumulated fractions.

    Args:
        labels: (N,) integers.
        fractions: sizes of the parts; the last part takes what the others leave.

    Returns:
        One sorted index array per fraction; together they hold every index once.
    """
    generator = np.random.default_rng(SPLIT_SEED)
    parts: list[list[np.ndarray]] = [[] for _ in fractions]
    for label in np.unique(labels):
        index = generator.permutation(np.flatnonzero(labels == label))
        cuts = np.rint(np.cumsum(fractions)[:-1] * len(index)).astype(int)
        for part, piece in zip(parts, np.split(index, cuts), strict=True):
            part.append(piece)
    return [np.sort(np.concatenate(part)) for part in parts]


def divide(parts: dict[str, tuple[list, list[int]]], shares: dict[str, float]) -> tuple[str, ...]:
    """Take the parts that are missing from the training part, in place; returns sentences about it.

    Args:
        parts: samples and labels by part; ``"train"`` must be there.
        shares: of the training part, for the others.

    Raises:
        LayerCollapseError: shares out of range, or too few samples for a class to be in every part.
    """
    missing = [part for part in shares if part not in parts]
    for part in missing:
        if not 0 < shares[part] < 1:
            raise LayerCollapseError(f"{part}_share: expected more than 0 and less than 1, got {shares[part]:g}")
    if not missing:
        return ()
    fractions = tuple(shares[part] for part in missing)
    if sum(fractions) >= 1:
        raise LayerCollapseError(f"{missing[0]}_share: expected shares that leave something to train on, got all")
    samples, labels = parts["train"]
    order = stratified(np.asarray(labels), (*fractions, 1 - sum(fractions)))
    counts = np.bincount(labels)
    if not all(map(len, order)) or len(np.unique(np.asarray(labels)[order[-1]])) < np.count_nonzero(counts):
        raise LayerCollapseError(
            f"data: expected enough samples of every class to divide them, got {counts[counts > 0].min()} of one"
        )
    for part, index in zip((*missing, "train"), order, strict=True):
        parts[part] = ([samples[i] for i in index], [labels[i] for i in index])
    return (f"{' and '.join(missing)}: {', '.join(f'{100 * f:g} %' for f in fractions)} of the training data",)


def from_arrays(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    classes: tuple[int | str, ...] = (),
    notes: tuple[str, ...] = (),
) -> DataSet:
    """A data set in memory, every channel normalised by the training split's mean and deviation.

    Args:
        name: of the data.
        train: images (N, H, W) or (N, C, H, W) of any dtype, and labels (N,).
        validation: the same.
        test: the same.
        classes: as for `DataSet`.
        notes: as for `DataSet`.
    """
    channels = train[0].reshape(len(train[0]), -1, *train[0].shape[-2:])
    count = channels.shape[1]
    # A channel at a time, as NumPy sums float32 in another order over several axes.
    means = [float(channels[:, c].mean()) for c in range(count)]
    deviations = [float(channels[:, c].std()) or 1.0 for c in range(count)]

    def split(images: np.ndarray, labels: np.ndarray) -> Split:
        normalised = torch.from_numpy(images.astype(np.float32)).reshape(len(images), count, *images.shape[-2:])
        for channel, (mean, deviation) in enumerate(zip(means, deviations, strict=True)):
            normalised[:, channel].sub_(mean).div_(deviation)
        return Split(normalised, torch.from_numpy(labels.astype(np.int64)))

    parts = (split(*train), split(*validation), split(*test))
    low, high = (torch.as_tensor(parts[0].inputs)).aminmax()
    shape = (count, *train[0].shape[-2:])
    box = (float(low), float(high))
    return DataSet(name, *parts, int(train[1].max()) + 1, shape, box, classes, notes=notes)
