"""Scales that join the record before or after them: the same values as one after the other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from layercollapse.compiler.ir.records import Affine, ChannelAffine, ConstantMap, ConvGeometry, Origin
from layercollapse.compiler.ir.scaling import add_border_weight, after, before

PADDED = ConvGeometry((3,), (1,), (1,), (1,))
VALID = ConvGeometry((3,), (1,), (0,), (1,))


def drawn(geometry: ConvGeometry, groups: int, border: bool = False) -> Affine:
    plane = torch.randn(4, *geometry.kernel).double() if border else None
    weight = torch.randn(4, 6 // groups, *geometry.kernel).double()
    return Affine(weight, torch.randn(4).double(), geometry, groups, torch.float32, plane, ("own", None), Origin.FROZEN)


def scale_of(channels: int, dim: int = 1, **settings) -> ChannelAffine:
    return ChannelAffine(torch.randn(channels).double(), torch.randn(channels).double(), dim, torch.float32, **settings)


def run(op: Affine | ChannelAffine | ConstantMap, x: Tensor) -> Tensor:
    if isinstance(op, ChannelAffine):
        sizes = (-1, *[1] * (x.ndim - 2)) if op.channel_dim == 1 else (-1,)
        return x * op.scale.view(sizes) + op.shift.view(sizes)
    ones, padding = torch.ones_like(x[:, :1]), op.geometry.padding
    plane = 0 if op.border_weight is None else F.conv1d(ones, op.border_weight[:, None], padding=padding)
    if isinstance(op, ConstantMap):
        return (plane + op.bias[:, None]).expand(len(x), -1, x.shape[2])
    if not op.geometry.kernel:
        return F.linear(x, op.weight, op.bias)
    return F.conv1d(x, op.weight, op.bias, padding=padding, groups=op.groups) + plane


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("geometry", [PADDED, VALID])
@pytest.mark.parametrize("border", [False, True])
def test_a_scale_joins_the_convolution_on_either_side(geometry: ConvGeometry, groups: int, border: bool) -> None:
    torch.manual_seed(0)
    op, x = drawn(geometry, groups, border and geometry is PADDED), torch.randn(2, 6, 8).double()
    behind, ahead = scale_of(4), scale_of(6)
    joined = after(op, behind)
    torch.testing.assert_close(run(joined, x), run(behind, run(op, x)))
    taken = before(ahead, op)
    torch.testing.assert_close(run(taken, x), run(op, run(ahead, x)))
    assert (taken.border_weight is None) == (geometry is VALID)  # a shift that meets a padding
    for new in (joined, taken):
        assert (new.source, new.origin) == (None, Origin.TRAINED)


def test_a_scale_joins_a_linear_layer_a_constant_map_and_another_scale() -> None:
    torch.manual_seed(0)
    linear = Affine(torch.randn(4, 6).double(), torch.randn(4).double(), ConvGeometry(), 1, torch.float32)
    x = torch.randn(3, 6).double()
    ahead, behind = scale_of(6, -1), scale_of(4, -1)
    torch.testing.assert_close(run(after(linear, behind), x), run(behind, run(linear, x)))
    torch.testing.assert_close(run(before(ahead, linear), x), run(linear, run(ahead, x)))
    torch.testing.assert_close(run(after(ahead, scale := scale_of(6, -1)), x), run(scale, run(ahead, x)))
    for plane in (None, torch.randn(4, 3).double()):
        constant = ConstantMap(plane, torch.randn(4).double(), PADDED, (), torch.float32)
        x, scale = torch.randn(2, 6, 8).double(), scale_of(4)
        torch.testing.assert_close(run(after(constant, scale), x), run(scale, run(constant, x)))


def test_what_differs_on_its_channels_does_not_join() -> None:
    assert after(drawn(VALID, 1), scale_of(4, -1)) is None
    assert after(None, scale_of(4)) is None


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ("number", "number", "number"),
        ("number", "parameter", "parameter"),
        ("parameter", None, None),
        (None, None, None),
    ],
)
def test_one_value_for_all_channels_stays_one(one: str | None, two: str | None, expected: str | None) -> None:
    assert after(scale_of(2, uniform=one), scale_of(2, uniform=two)).uniform == expected


def test_a_response_to_ones_is_a_bias_where_no_padding_can_tell() -> None:
    torch.manual_seed(0)
    plane = torch.tensor([[1.0, 2.0, 4.0]] * 4).double()
    valid = drawn(VALID, 1)
    added = add_border_weight(valid, plane)
    assert added.border_weight is None
    assert torch.equal(added.bias, valid.bias + 7)
    padded = drawn(PADDED, 1)
    once = add_border_weight(padded, plane)
    assert torch.equal(once.border_weight, plane)
    assert torch.equal(add_border_weight(once, plane).border_weight, 2 * plane)
    assert add_border_weight(padded, torch.zeros(4, 3).double()) is padded
