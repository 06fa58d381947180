"""Images in memory: one split, a data set of three splits, and the stratified way to make them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from layercollapse.errors import LayerCollapseError

SPLIT_SEED = 0  # the splits are part of the data set: they do not follow the seed of a run


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) float32, normalised, and labels (N,) int64, on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        """The same split on another device."""
        return Split(self.images.to(device), self.labels.to(device))

    def batches(self, batch_size: int) -> Batches:
        """A re-iterable of (images, labels) in order; the last batch may be smaller."""
        return Batches(self, batch_size, shuffled=False)

    def shuffled(self, batch_size: int) -> Batches:
        """A re-iterable of (images, labels): each pass in a new random order (torch's global generator).

        A last, smaller batch is left out, so that batch norm never meets a batch of one image.
        """
        return Batches(self, batch_size, shuffled=True)


class Batches:
    """Batches by indexing tensors: on small images several times faster than a DataLoader."""

    def __init__(self, split: Split, batch_size: int, *, shuffled: bool) -> None:
        if batch_size < 1:
            raise LayerCollapseError(f"batch_size: expected at least 1, got {batch_size}")
        self.split, self.shuffled = split, shuffled
        self.batch_size = min(batch_size, max(1, len(split)))

    def __len__(self) -> int:
        if self.shuffled:
            return len(self.split) // self.batch_size
        return math.ceil(len(self.split) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self.split.images, self.split.labels
        if not self.shuffled:
            yield from zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True)
            return
        order = torch.randperm(len(labels)).to(labels.device)
        for index in order.split(self.batch_size)[: len(self)]:
            yield images[index], labels[index]


@dataclass(frozen=True)
class DataSet:
    """Three splits of one set of images; models are chosen on `validation` and reported on `test`.

    `classes` has the label in the files for each class, where they are not 0, 1, ... themselves.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int:
        """One more than the largest label of the training split."""
        return int(self.train.labels.max()) + 1

    @property
    def in_channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""
        return self.train.images.shape[-1]

    @property
    def box(self) -> tuple[float, float]:
        """Black and white after the normalization: every pixel of the training split lies between."""
        low, high = self.train.images.aminmax()
        return float(low), float(high)

    def to(self, device: torch.device | str) -> DataSet:
        """The same data on another device."""
        splits = (self.train.to(device), self.validation.to(device), self.test.to(device))
        return DataSet(self.name, *splits, classes=self.classes)


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


def from_arrays(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classes: tuple[int, ...] = (),
) -> DataSet:
    """Tensors from (images (N, H, W), labels (N,)) pairs, normalised by the training split's mean and deviation."""
    mean, deviation = float(train[0].mean()), float(train[0].std()) or 1.0

    def split(images: np.ndarray, labels: np.ndarray) -> Split:
        normalised = torch.from_numpy(images.astype(np.float32)).sub_(mean).div_(deviation)
        return Split(normalised.unsqueeze(1), torch.from_numpy(labels.astype(np.int64)))

    return DataSet(name, split(*train), split(*validation), split(*test), classes)
