import pytest
import torch

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo import data


def identity(images):
    """A key for every image, to find it again."""
    return {image.numpy().tobytes() for image in images}


def test_splits_are_disjoint_and_always_the_same():
    first, second = data.load("digits"), data.load("digits")
    assert torch.equal(first.train.images, second.train.images)
    assert not identity(first.train.images) & identity(first.test.images)
    assert not identity(first.validation.images) & identity(first.test.images)


@pytest.mark.parametrize(
    ("name", "data_dir", "message"),
    [
        ("cifar", None, "data: expected one of digits, .* got 'cifar'"),
        ("idx", None, "data: expected a folder"),
        ("digits", "somewhere", "data: expected a folder only with"),
    ],
)
def test_bad_arguments(name, data_dir, message):
    with pytest.raises(LayerCollapseError, match=message):
        data.load(name, data_dir)
