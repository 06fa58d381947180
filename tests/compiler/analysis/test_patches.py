"""Rows of features against convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from layercollapse.compiler.analysis.patches import inner_columns, patches
from layercollapse.compiler.ir.records import ConvGeometry

GEOMETRIES = [
    ConvGeometry((3,), (2,), (1,), (1,)),
    ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1)),
    ConvGeometry((5, 3), (2, 1), (2, 1), (1, 1)),
    ConvGeometry((2, 4), (2, 3), (0, 1), (1, 2)),
    ConvGeometry((1, 3, 2), (1, 2, 2), (0, 1, 0), (1, 1, 1)),
]


@pytest.mark.parametrize("window", GEOMETRIES, ids=str)
def test_a_weight_on_the_features_is_the_convolution(window: ConvGeometry) -> None:
    torch.manual_seed(0)
    dims = len(window.kernel)
    x, weight = torch.randn(3, 4, *(9, 11, 6)[:dims]).double(), torch.randn(5, 4, *window.kernel).double()
    convolve = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    y = convolve(x, weight, None, window.stride, window.padding, window.dilation).movedim(1, -1).flatten(0, -2)
    positions = torch.randperm(len(y))[: len(y) // 2]
    torch.testing.assert_close(patches(x, window, positions) @ weight.flatten(1).T, y[positions])


def test_tokens_are_rows() -> None:
    x = torch.arange(24.0).reshape(2, 3, 4)
    positions = torch.tensor([5, 0])
    assert torch.equal(patches(x, ConvGeometry(), positions), torch.stack([x[1, 2], x[0, 0]]))


@pytest.mark.parametrize(("kernel", "inner"), [((5,), (3,)), ((5, 5), (1, 1)), ((5, 3), (3, 3)), ((4, 2), (2, 2))])
def test_the_inner_features_are_those_of_the_smaller_kernel(kernel, inner) -> None:
    dims = len(kernel)
    x = torch.randn(2, 3, *(8, 10)[:dims])
    padding = tuple((k - i) // 2 for k, i in zip(kernel, inner, strict=True))
    wide = ConvGeometry(kernel, (1,) * dims, padding, (1,) * dims)
    narrow = ConvGeometry(inner, (1,) * dims, (0,) * dims, (1,) * dims)
    positions = torch.arange(7)
    columns = inner_columns(3, kernel, inner)
    assert torch.equal(patches(x, wide, positions)[:, columns], patches(x, narrow, positions))


def test_the_inner_features_of_a_linear_layer_are_all() -> None:
    assert inner_columns(4, (), ()).tolist() == [0, 1, 2, 3]
