"""Folders of image files, one folder for each class: `train/cat/1.jpg`; decoded by Pillow when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from layercollapse.errors import LayerCollapseError, require
from layercollapse.zoo.data.loaders import from_pictures
from layercollapse.zoo.data.split import FRACTIONS, PART_NAMES, DataSet, divide
from layercollapse.zoo.data.transforms import CROPS, Transform, normalised, parsed_shape

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass
class Files(Dataset):
    """Image files and their classes: gives (tensor (C, H, W), class) by index."""

    files: list[Path]
    labels: list[int]
    transform: Transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with opened(self.files[index]) as picture:
            try:
                return self.transform(picture), self.labels[index]
            except (OSError, ValueError, SyntaxError) as error:  # a file that is cut short is found when it is decoded
                raise LayerCollapseError(f"data: cannot decode {self.files[index]}: {error}") from error


def opened(file: Path) -> Any:
    """A picture, whose header has been read.

    Raises:
        LayerCollapseError: Pillow is not installed, or does not know such a file.
    """
    image = require("PIL.Image", "images")
    try:
        return image.open(file)
    except OSError as error:
        raise LayerCollapseError(f"data: expected an image in {file}, got: {error}") from error


def load_imagefolder(
    folder: Path,
    *,
    input: str | None = None,
    resize: int | None = None,
    crop: str = "center",
    normalize: str = "data",
    validation_share: float = FRACTIONS[1],
    test_share: float = FRACTIONS[2],
    workers: int | None = None,
) -> DataSet:
    """A folder with train, validation and test folders, or with a folder for each class that is divided into these.

    Args:
        folder: holds them; a missing validation or test folder is a share of the training images.
        input: "CxHxW", what the network gets; by default as the first image is.
        resize: see `Transform`.
        crop: see `Transform`.
        normalize: ``"data"`` (mean and deviation of the training images), a name of `NORMALIZE`, or MEAN/DEVIATION,
            each a number or one for each channel with commas between.
        validation_share: of the training images, where there is no folder for validation.
        test_share: of the training images, where there is no folder for tests.
        workers: processes that decode; by default one for each processor, four at most.

    Raises:
        LayerCollapseError: no such folder, no classes, a file that is no image, images of several sizes and no `input`.
    """
    if not folder.is_dir():
        raise LayerCollapseError(f"data: expected a folder of images, got {folder}")
    found = {part: where for part, names in PART_NAMES.items() if (where := _first(folder, names)) is not None}
    root = found.get("train", folder)
    if root == folder and found:
        raise LayerCollapseError(
            f"data: expected a folder 'train' in {folder} beside {', '.join(w.name for w in found.values())}, got none"
        )
    classes = _classes(root)
    files, labels = _files(root, classes)
    everything = {"train": (files, labels)}
    for part in ("validation", "test"):
        if part in found:
            everything[part] = _files(found[part], classes)
    notes = divide(everything, {"validation": validation_share, "test": test_share})
    transform = _transform(everything["train"][0], input, resize, crop)
    transform = normalised(transform, normalize, [partial(opened, file) for file in everything["train"][0]])
    return from_pictures(
        folder.resolve().name,
        {name: partial(Files, *part) for name, part in everything.items()},
        transform,
        workers=workers,
        classes=classes,
        num_classes=len(classes),
        notes=notes,
    )


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _classes(folder: Path) -> list[str]:
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        raise LayerCollapseError(
            f"data: expected a folder for each of at least two classes in {folder}, got {', '.join(classes) or 'none'}"
        )
    return classes


def _files(folder: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    if other := sorted(set(_classes(folder)) - set(classes)):
        raise LayerCollapseError(f"data: expected the classes {', '.join(classes)} in {folder}, got {', '.join(other)}")
    files, labels = list[Path](), list[int]()
    for label, name in enumerate(classes):
        own = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES)
        files += own
        labels += [label] * len(own)
    empty = [name for label, name in enumerate(classes) if label not in set(labels)]
    if empty and folder.name in PART_NAMES["train"]:
        raise LayerCollapseError(
            f"data: expected images ({', '.join(SUFFIXES)}) of every class, got none in {folder / empty[0]}"
        )
    if not files:
        raise LayerCollapseError(f"data: expected images ({', '.join(SUFFIXES)}) in {folder}, got none")
    return files, labels


def _transform(files: list[Path], input: str | None, resize: int | None, crop: str) -> Transform:
    """The transform of a training image; without `input`, of images that are all as the first one."""
    if crop not in CROPS:
        raise LayerCollapseError(f"crop: expected one of {', '.join(CROPS)}, got {crop!r}")
    if input is not None:
        return Transform(parsed_shape(input), resize, crop)
    sizes: dict[tuple, Path] = {}
    for file in files:
        with opened(file) as picture:
            sizes.setdefault(picture.size, file)
            channels = 1 if picture.mode in ("1", "L", "LA", "I", "I;16") else 3
        if len(sizes) > 1:
            (first, one), (second, other) = sizes.items()
            raise LayerCollapseError(
                f"input: expected what the network gets, as --input {channels}x64x64, for images of several sizes: "
                f"{one} is {first[0]} wide and {first[1]} high, {other} {second[0]} and {second[1]}"
            )
    (width, height), _ = next(iter(sizes.items()))
    return Transform((channels, height, width), resize, crop)
