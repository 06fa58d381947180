"""Images in IDX files: read by hand, kept with their labels, and errors that name the file."""

import gzip
import struct

import numpy as np
import pytest
import torch

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo import data
from layercollapse.zoo.data.idx import read_idx


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    """24 + 6 images of 4x4: image i of a split is filled with i, its label is i % 3."""
    for prefix, count in (("train", 24), ("t10k", 6)):
        images = np.repeat(np.arange(count, dtype=np.uint8), 16).reshape(count, 4, 4)
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        labels = (np.arange(count) % 3).astype(np.uint8)
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))  # both kinds may be mixed
    return tmp_path


def test_idx_folder_keeps_every_image_with_its_label(folder):
    loaded = data.load("idx", folder)
    assert loaded.name == folder.name
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (21, 3, 6)
    pixels = torch.cat([loaded.train.inputs, loaded.validation.inputs])[:, 0, 0, 0]
    rank = pixels.argsort().argsort()  # normalisation keeps the order, and image i is filled with i
    assert torch.equal(torch.cat([loaded.train.labels, loaded.validation.labels]), rank % 3)
    assert sorted(loaded.validation.labels.tolist()) == [0, 1, 2]


def test_read_idx_by_hand(tmp_path):
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    (tmp_path / "file").write_bytes(idx_bytes(array))
    np.testing.assert_array_equal(read_idx(tmp_path / "file"), array)


def damage_truncated(folder):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])


def damage_short(folder):
    path = folder / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])


def damage_header(folder):
    (folder / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0]))


def damage_type(folder):
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"<html>not found</html>")


def damage_count(folder):
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(5, np.uint8)))


def damage_label(folder):
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.full(6, 9, np.uint8)))


def damage_missing(folder):
    (folder / "t10k-images-idx3-ubyte.gz").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncated, "cannot read .*train-images-idx3-ubyte.gz"),
        (damage_short, r"expected 32 bytes in .*train-labels-idx1-ubyte for shape \(24,\), got 31"),
        (damage_header, "bytes in .*train-labels-idx1-ubyte for shape .* got 5"),
        (damage_type, "expected an IDX file of unsigned bytes at .*, got a file starting with b'<htm'"),
        (damage_count, "expected as many images .* as labels"),
        (damage_label, "expected the train and t10k files .* got images .* and .*9"),
        (damage_missing, "expected t10k-images-idx3-ubyte.gz in .*, got no such file"),
    ],
)
def test_damaged_files(folder, damage, message):
    damage(folder)
    with pytest.raises(LayerCollapseError, match="data: .*" + message):
        data.load("idx", folder)


def test_missing_folder_says_how_to_get_the_data(tmp_path):
    with pytest.raises(LayerCollapseError, match="apt-get install dataset-fashion-mnist"):
        data.load("fashion-mnist", tmp_path / "nothing")


@pytest.mark.parametrize("labels", [(1, 2, 3), (0, 2, 7), (0, 1, 2)])
def test_the_labels_that_occur_are_the_classes(folder, labels):
    plain = data.load("idx", folder)
    for prefix, count in (("train", 24), ("t10k", 6)):
        made = np.array([labels[i % 3] for i in range(count)], np.uint8)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(made))
    loaded = data.load("idx", folder).to("cpu")
    assert loaded.num_classes == 3
    assert loaded.classes == (() if labels == (0, 1, 2) else labels)
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(loaded, split).labels, getattr(plain, split).labels)
