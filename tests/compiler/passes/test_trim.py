"""Outer taps without a weight go, and the padding with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layercollapse.compiler.backend.emit import emit
from layercollapse.compiler.ir.records import Affine
from layercollapse.compiler.passes.context import Group, PassContext
from layercollapse.compiler.passes.trim import trim_kernels
from networks import lowered


def convolution(kernel: int, taps: list[int], **settings: int) -> nn.Module:
    """One whose weights are zero but at some taps."""
    torch.manual_seed(0)
    layer = nn.Conv1d(2, 3, kernel, **settings)
    gone = torch.ones(kernel, dtype=torch.bool)
    gone[taps] = False
    layer.weight.data[..., gone] = 0
    return nn.Sequential(layer).double()


@pytest.mark.parametrize(
    ("kernel", "taps", "settings", "left", "padding"),
    [
        (5, [2], {"padding": 2}, 1, 0),
        (5, [1, 2], {"padding": 2}, 3, 1),  # as many on both sides
        (5, [2], {"padding": 1}, 3, 0),  # as far as the padding allows
        (3, [1], {"padding": 2, "dilation": 2}, 1, 0),
        (3, [1], {"padding": 1, "dilation": 2}, 3, 1),  # a padding of less than one dilated tap
        (5, [0, 2], {"padding": 2}, 5, 2),
        (3, [1], {}, 3, 0),  # without padding every output has a tap there
        (5, [2], {"padding": 2, "stride": 2}, 1, 0),
    ],
)
def test_taps_go_as_far_as_the_padding(kernel: int, taps: list[int], settings: dict, left: int, padding: int) -> None:
    model, x = convolution(kernel, taps, **settings), torch.randn(2, 2, 11).double()
    net = lowered(model, x)
    assert trim_kernels(net, PassContext()) == (left < kernel)
    op = net.ops["0"]
    assert (op.geometry.kernel, op.geometry.padding) == ((left,), (padding,))
    torch.testing.assert_close(emit(net)(x), model(x))
    assert not trim_kernels(net, PassContext())


def test_a_border_weight_keeps_its_taps() -> None:
    net = lowered(convolution(3, [1], padding=1), torch.randn(2, 2, 11).double())
    ((node, op),) = net.records(Affine)
    for border, left in ((torch.tensor([0.0, 1.0, 0.0]), 1), (torch.tensor([1.0, 1.0, 0.0]), 3)):
        some = net.copy()
        copied = next(n for n in some.graph.nodes if n.name == node.name)
        some.set(copied, Affine(op.weight, op.bias, op.geometry, 1, op.dtype, border.double().expand(3, 3)))
        assert trim_kernels(some, PassContext()) == (left == 1)
        new = some.ops["0"]
        assert new.geometry.kernel == (left,)
        if left == 1:  # without a padding a response to ones is a bias
            assert new.border_weight is None
            assert torch.equal(new.bias, op.bias + 1)


def test_where_it_is_not_permitted_nothing_goes() -> None:
    net = lowered(convolution(5, [2], padding=2), torch.randn(2, 2, 11).double())
    assert not trim_kernels(net, PassContext(omitted=lambda name: {Group.TRIM}))
    assert trim_kernels(net, PassContext(omitted=lambda name: {Group.SEQUENCE}))


def test_a_layer_that_reads_nothing_and_a_transposed_one_stay() -> None:
    assert not trim_kernels(lowered(convolution(5, [], padding=2), torch.randn(2, 2, 11).double()), PassContext())
    turned = nn.Sequential(nn.ConvTranspose1d(2, 3, 3, padding=1))
    turned[0].weight.data[..., [0, 2]] = 0
    assert not trim_kernels(lowered(turned, torch.randn(2, 2, 11)), PassContext())
