"""What data ask of a model, and samples of such a shape."""

from __future__ import annotations

import pytest
import torch

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo.data import load
from layercollapse.zoo.data.split import Text
from layercollapse.zoo.models.wanted import Wanted


def test_of_data() -> None:
    wanted = Wanted.of(load("digits"), 4, {"a": 1})
    assert wanted == Wanted(10, (1, 8, 8), None, 4, {"a": 1})
    with pytest.raises(LayerCollapseError, match="width: expected only with the built-in networks, got 4 with 'x'"):
        wanted.without_width("x")


def test_samples() -> None:
    (images,) = Wanted(3, (3, 4, 5)).example()
    assert (images.shape, images.dtype) == ((2, 3, 4, 5), torch.float32)
    texts = Wanted(3, text=Text(None, 9, 1, 7)).example()
    assert texts["input_ids"].tolist() == [[2] * 7] * 2  # no padding
    assert texts["attention_mask"].tolist() == [[1] * 7] * 2
    with pytest.raises(LayerCollapseError, match="model: expected one for such inputs, got 'it'"):
        Wanted(3).example()
