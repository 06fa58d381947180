"""Data sets of the `datasets` library that are on disk (`Dataset.save_to_disk`): images or texts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from layercollapse.errors import LayerCollapseError, require
from layercollapse.zoo.data.loaders import from_pictures
from layercollapse.zoo.data.split import FRACTIONS, PART_NAMES, DataSet, divide
from layercollapse.zoo.data.text import TOKENS, from_texts
from layercollapse.zoo.data.transforms import CROPS, MODES, Transform, normalised, parsed_shape


@dataclass
class Rows(Dataset):
    """Rows of a table with images: gives (tensor (C, H, W), class) by index."""

    table: Any
    column: str
    index: list[int]
    labels: list[int]
    transform: Transform

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.table[self.index[index]][self.column]), self.labels[index]


def load_hub(
    folder: Path,
    *,
    text: str = "text",
    label: str = "label",
    tokens: int = TOKENS,
    tokenizer: str | None = None,
    input: str | None = None,
    resize: int | None = None,
    crop: str = CROPS[0],
    normalize: str = "data",
    validation_share: float = FRACTIONS[1],
    test_share: float = FRACTIONS[2],
    workers: int | None = None,
) -> DataSet:
    """A data set with a column of images, or of texts, and one of labels.

    Args:
        folder: what `save_to_disk` wrote.
        text: as for `load_text`; read where there is no column of images.
        label: name of the column of labels: classes with names, or whole numbers from 0 on.
        tokens: as for `load_text`.
        tokenizer: the same.
        input: as for `load_imagefolder`; without it, images must all be as the first one.
        resize: the same.
        crop: the same.
        normalize: the same.
        validation_share: of the training part, where there is no other.
        test_share: the same.
        workers: as for `load_imagefolder`.

    Raises:
        LayerCollapseError: no such data set, or its columns are not as expected.
    """
    datasets = require("datasets", "hf")
    try:
        opened = datasets.load_from_disk(str(folder))
    except Exception as error:
        said = str(error).partition("\n")[0]
        raise LayerCollapseError(f"data: expected a folder of datasets' save_to_disk, got {folder}: {said}") from error
    tables = opened if isinstance(opened, datasets.DatasetDict) else {"train": opened}
    tables = {part: table for part, names in PART_NAMES.items() for name, table in tables.items() if name in names}
    if "train" not in tables:
        raise LayerCollapseError(f"data: expected a part 'train' in {folder}, got {', '.join(opened)}")
    features = tables["train"].features
    if label not in features:
        raise LayerCollapseError(f"label: expected a column {label!r} in {folder}, got {', '.join(features)}")
    tables = {part: table for part, table in tables.items() if part == "train" or min(table[label], default=0) >= 0}
    labels = {part: [int(value) for value in table[label]] for part, table in tables.items()}
    named = getattr(features[label], "names", None)
    classes: list[Any] = list(named or range(max(labels["train"]) + 1))
    if wrong := next((v for values in labels.values() for v in values if not 0 <= v < len(classes)), None):
        raise LayerCollapseError(f"label: expected classes from 0 to {len(classes) - 1} in {folder}, got {wrong}")
    image = next((name for name, kind in features.items() if type(kind).__name__ == "Image"), None)
    if image is None:
        columns = [name.strip() for name in text.split(",")]
        if missing := [name for name in columns if name not in features]:
            raise LayerCollapseError(f"text: expected a column {missing[0]!r} in {folder}, got {', '.join(features)}")
        texts = {
            part: (list(zip(*(table[name] for name in columns), strict=True)), labels[part])
            for part, table in tables.items()
        }
        notes = divide(texts, {"validation": validation_share, "test": test_share})
        return from_texts(folder.resolve().name, texts, classes, tokens=tokens, tokenizer=tokenizer, notes=notes)
    rows: dict[str, tuple[list, list[int]]] = {
        part: ([(part, i) for i in range(len(table))], labels[part]) for part, table in tables.items()
    }
    notes = divide(rows, {"validation": validation_share, "test": test_share})
    train = [(tables[part], i) for part, i in rows["train"][0]]
    if crop not in CROPS:
        raise LayerCollapseError(f"crop: expected one of {', '.join(CROPS)}, got {crop!r}")
    shape = parsed_shape(input) if input else _shape(train[0][0][train[0][1]][image])
    transform = Transform(shape, resize, crop)
    transform = normalised(transform, normalize, [_Opener(table, i, image) for table, i in train])
    return from_pictures(
        folder.resolve().name,
        {
            part: partial(Rows, tables[places[0][0]], image, [i for _, i in places], own)
            for part, (places, own) in rows.items()
        },
        transform,
        workers=workers,
        classes=named or (),
        num_classes=len(classes),
        notes=notes,
    )


@dataclass(frozen=True)
class _Opener:
    """Opens the picture of a row."""

    table: Any
    index: int
    column: str

    def __call__(self) -> Any:
        return self.table[self.index][self.column]


def _shape(picture: Any) -> tuple[int, int, int]:
    array = np.asarray(picture)
    return (next(c for c, mode in MODES.items() if mode == ("L" if array.ndim == 2 else "RGB")), *array.shape[:2])
