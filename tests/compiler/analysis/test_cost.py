"""Multiply-accumulates and depth, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import layercollapse as lc
from layercollapse.compiler.analysis.cost import captured_depth, macs, net_depth, summarize
from layercollapse.compiler.ir.records import Affine, ConvGeometry
from networks import Model, lowered


def layer(*size: int, groups: int = 1, border: bool = False, **geometry: tuple[int, ...]) -> Affine:
    dims = len(size) - 2
    usual = {"stride": (1,) * dims, "padding": (0,) * dims, "dilation": (1,) * dims}
    shape = ConvGeometry(size[2:], **{**usual, **geometry})
    plane = torch.ones(size[0], *size[2:]).double() if border else None
    return Affine(torch.ones(size).double(), torch.zeros(size[0]).double(), shape, groups, torch.float32, plane)


@pytest.mark.parametrize(
    ("op", "shape", "expected"),
    [
        (layer(5, 3), (2, 5), 15),
        (layer(5, 3), (2, 7, 5), 7 * 15),  # seven positions of a sample
        (layer(4, 3, 3, 3), (2, 4, 6, 8), 4 * 3 * 9 * 48),
        (layer(4, 1, 3, 3, groups=4), (2, 4, 6, 8), 4 * 9 * 48),
        (layer(4, 3, 3, border=True, padding=(1,)), (1, 4, 10), (4 * 3 * 3 + 4 * 3 + 4) * 10),
        # Transposed: the window is laid on the 5 positions of the input, (9 + 0 - 1 - 0) / 2 + 1.
        (layer(4, 3, 1, stride=(2,), output_padding=(0,)), (1, 4, 9), 4 * 3 * 5),
    ],
)
def test_multiply_accumulates_of_a_layer(op: Affine, shape: tuple[int, ...], expected: int) -> None:
    assert macs(op, shape) == expected


NETWORKS = {
    "chain": (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Linear(5, 2)), 3),
    "skip": (Model(lambda m, x: m.c(m.b(m.a(x)) + x), **{k: nn.Linear(4, 4) for k in "abc"}), 3),
    "no layer on the longest path": (Model(lambda m, x: m.a(x) + torch.tanh(torch.tanh(x)), a=nn.Linear(4, 4)), 1),
    "size alone": (Model(lambda m, x: m.a(torch.zeros_like(m.b(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 4)), 0),
    "norms are no layers": (nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)), 2),
    "computed weights": (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))), 1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_depth_is_that_of_the_longest_path_with_weights(name: str) -> None:
    model, depth = NETWORKS[name]
    x = torch.randn(3, 4)
    assert captured_depth(lc.capture(model.eval(), x)) == depth
    assert net_depth(lowered(model, x)) == depth


def test_sizes_of_a_model() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 16, 5)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    summary = summarize(model, torch.randn(1, 1, 6, 6), 2)
    assert summary.parameters == (2 * 9 + 2) + 4 + (32 * 5 + 5)  # buffers are not counted
    assert summary.macs == 2 * 9 * 16 + 32 * 5
    assert summary.depth == 2
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
