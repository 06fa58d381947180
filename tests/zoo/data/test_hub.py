"""Data sets of the datasets library on disk: images, texts, parts and classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo.data import load

datasets = pytest.importorskip("datasets")
Image = pytest.importorskip("PIL.Image")


def pictures(count: int) -> datasets.Dataset:
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    images = [Image.fromarray(np.full((4, 6, 3), 10 * i, np.uint8)) for i in range(count)]
    return datasets.Dataset.from_dict({"img": images, "label": [i % 2 for i in range(count)]}, features=features)


def test_images(tmp_path: Path) -> None:
    datasets.DatasetDict(train=pictures(20), test=pictures(4)).save_to_disk(tmp_path / "pets")
    found = load(f"hf:{tmp_path / 'pets'}", workers=0, normalize="unit")
    assert (found.shape, found.classes, found.num_classes) == ((3, 4, 6), ("cat", "dog"), 2)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [18, 2, 4]
    ((images, labels),) = found.test.batches(4)
    assert labels.tolist() == [0, 1, 0, 1]
    assert (images[:, 0, 0, 0] * 255).round().tolist() == [0, 10, 20, 30]


def test_texts(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    table = datasets.Dataset.from_dict({"sentence": [f"word{i % 5}" for i in range(40)], "label": [0, 1] * 20})
    table.save_to_disk(tmp_path / "words")
    found = load(f"hf:{tmp_path / 'words'}", text="sentence", tokens=4)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [28, 4, 8]
    assert (found.num_classes, found.kind, found.train.inputs["input_ids"].shape) == (2, "texts", (28, 4))
    with pytest.raises(LayerCollapseError, match=r"text: expected a column 'text' in .*, got sentence, label"):
        load(f"hf:{tmp_path / 'words'}")
    with pytest.raises(LayerCollapseError, match=r"label: expected a column 'y' in .*, got sentence, label"):
        load(f"hf:{tmp_path / 'words'}", label="y")


def test_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(LayerCollapseError, match="data: expected a folder of datasets' save_to_disk, got "):
        load(f"hf:{tmp_path}")
    datasets.DatasetDict(test=pictures(2)).save_to_disk(tmp_path / "pets")
    with pytest.raises(LayerCollapseError, match=r"data: expected a part 'train' in .*, got test"):
        load(f"hf:{tmp_path / 'pets'}")
