"""What records say of themselves, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from layercollapse.compiler.ir.records import (
    Affine,
    ChannelAffine,
    ConstantMap,
    ConvGeometry,
    input_channels,
    transposed,
    ungrouped,
)


def geometry(
    kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1, more: int | None = None
) -> ConvGeometry:
    return ConvGeometry((kernel,), (stride,), (padding,), (dilation,), None if more is None else (more,))


@pytest.mark.parametrize(
    ("shape", "extent", "sensitive", "pointwise"),
    [
        (geometry(1), 1, False, True),
        (geometry(1, stride=2), 1, False, False),
        (geometry(1, padding=1), 1, True, False),
        (geometry(3), 3, False, False),
        (geometry(3, dilation=4), 9, False, False),
        (geometry(1, more=0), 1, True, False),
    ],
)
def test_geometries(shape: ConvGeometry, extent: int, sensitive: bool, pointwise: bool) -> None:
    assert (shape.extent, shape.border_sensitive, shape.pointwise) == ((extent,), sensitive, pointwise)


def grouped() -> Affine:
    """Two groups of two inputs and one output each; neither reads input 1, and the second output reads nothing."""
    weight = torch.tensor([[3.0, 0.0], [0.0, 0.0]], dtype=torch.float64)[..., None]
    return Affine(weight, torch.zeros(2).double(), geometry(1), 2, torch.float32)


def test_a_layer_of_groups() -> None:
    op = grouped()
    assert (op.size, op.outputs, op.inputs, op.depthwise, op.channel_dim) == ((2, 2, 1), 2, 4, False, 1)
    assert input_channels(op).tolist() == [[0, 1], [2, 3]]
    assert op.dense()[..., 0].tolist() == [[3, 0, 0, 0], [0, 0, 0, 0]]
    assert op.pairs().tolist() == [[True, False], [False, False]]
    assert op.reads().tolist() == [True, False, False, False]
    assert op.writes().tolist() == [True, False]
    assert op.spread(torch.arange(4)).tolist() == [[0, 1], [2, 3]]


def test_a_linear_layer_and_a_depthwise_one() -> None:
    op = replace(grouped(), weight=torch.eye(3).double(), bias=torch.zeros(3), geometry=ConvGeometry(), groups=1)
    assert (op.channel_dim, op.inputs, op.depthwise) == (-1, 3, False)
    assert op.spread(torch.arange(3)).tolist() == [[0, 1, 2]]
    assert replace(grouped(), weight=torch.ones(2, 1, 1).double()).depthwise


def test_weights_without_groups_compute_the_same() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(6, 2, 3).double(), torch.randn(2, 6, 7).double()
    whole = ungrouped(weight, 3)
    assert whole.shape == (6, 6, 3)
    torch.testing.assert_close(F.conv1d(x, whole), F.conv1d(x, weight, groups=3))
    back = F.conv_transpose1d(F.conv1d(x, weight, groups=3), transposed(transposed(weight, 3), 3), groups=3)
    torch.testing.assert_close(back, F.conv_transpose1d(F.conv1d(x, whole), whole))


def test_what_a_scale_is() -> None:
    one, zero, two = torch.ones(2).double(), torch.zeros(2).double(), torch.tensor([1.0, 2.0]).double()
    for scale, shift, expected in (
        (one, zero, (True, True, True)),
        (one, two, (False, True, False)),
        (two, zero, (False, False, True)),
        (two, two, (False, False, False)),
    ):
        op = ChannelAffine(scale, shift, 1, torch.float32)
        assert (op.identity, op.shifts_only, op.scales_only) == expected


def test_where_the_channels_of_a_constant_map_are() -> None:
    assert ConstantMap(None, torch.zeros(2), ConvGeometry(), (), torch.float32).channel_dim == -1
    assert ConstantMap(None, torch.zeros(2), geometry(1), (), torch.float32).channel_dim == 1
