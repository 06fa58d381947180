import pytest
import torch

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo import data


def identity(images):
    """A key for every image, to find it again."""
    return {image.numpy().tobytes() for image in images}


def test_splits_are_disjoint_and_always_the_same():
    first, second = data.load("digits"), data.load("digits")
    assert torch.equal(first.train.inputs, second.train.inputs)
    assert not identity(first.train.inputs) & identity(first.test.inputs)
    assert not identity(first.validation.inputs) & identity(first.test.inputs)


@pytest.mark.parametrize(
    ("name", "data_dir", "message"),
    [
        ("cifar", None, "data: expected one of digits, .* got 'cifar'"),
        ("idx", None, "data: expected idx:FOLDER"),
        ("digits", "somewhere", "data: expected .digits. without a folder or file"),
    ],
)
def test_bad_arguments(name, data_dir, message):
    with pytest.raises(LayerCollapseError, match=message):
        data.load(name, data_dir)
