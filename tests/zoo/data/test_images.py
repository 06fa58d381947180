"""Folders of image files: parts, classes, workers, and which file is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo.data import load
from layercollapse.zoo.data.images import load_imagefolder

Image = pytest.importorskip("PIL.Image")


def write(folder: Path, part: str, counts: dict[str, int], size: tuple[int, int] = (6, 4), mode: str = "RGB") -> None:
    """Pictures of one colour each: the class in the first channel, the number in the second."""
    for label, (name, count) in enumerate(counts.items()):
        where = folder / part / name
        where.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", size, (100 * label, number, 0)).convert(mode).save(where / f"{number:03}.png")


def test_parts_in_folders(tmp_path: Path) -> None:
    write(tmp_path, "train", {"cat": 5, "dog": 4})
    write(tmp_path, "val", {"cat": 2, "dog": 1})
    write(tmp_path, "test", {"cat": 1, "dog": 3})
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    found = load(f"imagefolder:{tmp_path}", normalize="unit", workers=0)
    assert (found.name, found.num_classes, found.classes) == (tmp_path.name, 2, ("cat", "dog"))
    assert (found.shape, found.image_size, found.in_channels) == ((3, 4, 6), (4, 6), 3)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [9, 3, 4]
    assert found.box == (0.0, 1.0)
    ((images, labels),) = found.test.batches(10)
    assert labels.tolist() == [0, 1, 1, 1]
    assert (images[:, 0, 0, 0] * 255).round().tolist() == [0, 100, 100, 100]
    assert found.notes == ()


def test_workers_give_the_same_batches(tmp_path: Path) -> None:
    write(tmp_path, "train", {"cat": 12, "dog": 12})
    here, there = (load_imagefolder(tmp_path, workers=workers) for workers in (0, 2))
    for a, b in zip(here.train.batches(5), there.train.batches(5), strict=True):
        assert all(map(torch.equal, a, b))
    torch.manual_seed(0)
    batches = list(there.train.shuffled(5))
    assert [len(labels) for _, labels in batches] == [5] * (len(there.train) // 5)
    assert len(there.train.shuffled(5)) == len(batches)
    assert len({images[:, 1, 0, 0].numpy().tobytes() for images, _ in [*batches, *there.train.shuffled(5)]}) > 3


def test_classes_alone_are_divided(tmp_path: Path) -> None:
    write(tmp_path, "", {"cat": 20, "dog": 10})
    found = load_imagefolder(tmp_path, workers=0, validation_share=0.2, test_share=0.3)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [15, 6, 9]
    seen = np.concatenate([x.samples.files for x in (found.train, found.validation, found.test)])
    assert len(set(seen)) == 30
    assert found.notes == ("validation and test: 20 %, 30 % of the training data",)


def test_grey_files_and_files_of_several_sizes(tmp_path: Path) -> None:
    write(tmp_path, "train", {"cat": 10, "dog": 10}, mode="L")
    assert load_imagefolder(tmp_path, workers=0).shape == (1, 4, 6)
    write(tmp_path, "train", {"cat": 11}, size=(9, 9))
    with pytest.raises(
        LayerCollapseError, match=r"as --input \dx64x64, for images of several sizes: .*000.png is 9 wide"
    ):
        load_imagefolder(tmp_path, workers=0)
    found = load_imagefolder(tmp_path, workers=0, input="3x8x5")
    assert next(iter(found.train.batches(2)))[0].shape == (2, 3, 8, 5)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, "train", {"cat": 6, "dog": 6}, size=(40, 40))
    write(tmp_path, "test", {"cat": 2, "dog": 2}, size=(40, 40))
    file = tmp_path / "test" / "dog" / "001.png"
    file.write_bytes(file.read_bytes()[:60])
    for workers in (0, 2):
        found = load_imagefolder(tmp_path, workers=workers)
        with pytest.raises(LayerCollapseError, match=rf"^data: cannot decode {file}: \S.*$"):
            list(found.test.batches(2))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "folder for each of at least two classes"),
        ({"val": {"cat": 1, "dog": 1}}, "expected a folder 'train' in .* beside val"),
        ({"train": {"cat": 3}}, "at least two classes in .*train, got cat"),
        ({"train": {"cat": 3, "dog": 0}}, "of every class, got none in .*dog"),
        ({"train": {"cat": 3, "dog": 3}, "test": {"cat": 1, "cow": 1}}, "the classes cat, dog in .*test, got cow"),
        ({"train": {"cat": 3, "dog": 1}}, "expected enough samples of every class to divide them, got 1 of one"),
    ],
)
def test_folders_that_are_none(tmp_path: Path, parts: dict, message: str) -> None:
    for part, counts in parts.items():
        write(tmp_path, part, counts)
    with pytest.raises(LayerCollapseError, match=message):
        load_imagefolder(tmp_path, workers=0)


def test_bad_options(tmp_path: Path) -> None:
    write(tmp_path, "train", {"cat": 10, "dog": 10})
    (tmp_path / "train" / "cat" / "000.png").write_text("no image")
    with pytest.raises(LayerCollapseError, match=r"data: expected an image in .*cat/000.png, got: cannot identify"):
        load_imagefolder(tmp_path)
    with pytest.raises(LayerCollapseError, match="data: expected a folder of images, got nowhere"):
        load("imagefolder:nowhere")
    with pytest.raises(LayerCollapseError, match="crop: expected one of center, random, resized, got 'left'"):
        load_imagefolder(tmp_path, crop="left")
    with pytest.raises(LayerCollapseError, match="validation_share: expected more than 0 and less than 1, got 2"):
        load_imagefolder(tmp_path, validation_share=2.0)
    with pytest.raises(LayerCollapseError, match="validation_share: expected shares that leave something"):
        load_imagefolder(tmp_path, validation_share=0.5, test_share=0.5)
