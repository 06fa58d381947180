"""What norms make of constants, by hand; and where nothing is claimed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layercollapse.compiler.analysis.constants import constants
from layercollapse.compiler.analysis.dataflow import along
from networks import Model, lowered


def made(norm: nn.Module, values: list[float], x: torch.Tensor, dim: int = -1) -> torch.Tensor | None:
    """What is known behind a norm of a layer whose outputs are these whatever the input."""
    layer = nn.Linear(2, len(values)) if dim == -1 else nn.Conv2d(2, len(values), 1)
    layer.weight.data.zero_()
    layer.bias.data = torch.tensor(values)
    net = lowered(Model(lambda m, x: m.norm(m.layer(x)), layer=layer, norm=norm).double(), x.double())
    (output,) = (node for node in net.graph.nodes if node.op == "output")
    return along(constants(net).get(output.all_input_nodes[0]), dim)


def test_a_layer_norm() -> None:
    norm = nn.LayerNorm(3, eps=0.0)
    norm.weight.data, norm.bias.data = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([0.0, 0.0, 5.0])
    # -1, 0, 1: mean 0, variance 2/3.
    assert made(norm, [-1.0, 0.0, 1.0], torch.randn(4, 2)).tolist() == pytest.approx([-(1.5**0.5), 0.0, 5 + 1.5**0.5])


def test_an_rms_norm() -> None:
    # 3, 4: root of the mean square of 9 and 16.
    assert made(nn.RMSNorm(2, eps=0.0), [3.0, 4.0], torch.randn(4, 5, 2)).tolist() == pytest.approx(
        [3 / 12.5**0.5, 4 / 12.5**0.5]
    )


def test_a_group_norm_norms_every_group() -> None:
    got = made(nn.GroupNorm(2, 4, eps=0.0), [-1.0, 1.0, -3.0, 3.0], torch.randn(2, 2, 4, 4), dim=1)
    assert got.tolist() == pytest.approx([-1.0, 1.0, -1.0, 1.0])


def test_one_channel_that_varies_makes_all_of_its_group_vary() -> None:
    layer = nn.Conv2d(2, 4, 1)
    layer.weight.data[1:] = 0
    layer.bias.data = torch.tensor([0.0, 1.0, -2.0, 2.0])
    model = Model(lambda m, x: m.norm(m.layer(x)), layer=layer, norm=nn.GroupNorm(2, 4, eps=0.0)).double()
    net = lowered(model, torch.randn(2, 2, 4, 4).double())
    (output,) = (node for node in net.graph.nodes if node.op == "output")
    value = along(constants(net).get(output.all_input_nodes[0]), 1)
    assert value.isnan().tolist() == [True, True, False, False]
    assert value[2:].tolist() == pytest.approx([-1.0, 1.0])


def test_nothing_is_claimed_where_rounding_may_be_all_that_is_left() -> None:
    assert made(nn.LayerNorm(2), [1e9, 1e9], torch.randn(4, 2)) is None


def test_nor_over_positions_or_by_running_statistics() -> None:
    class Whole(nn.Module):
        def forward(self, x):
            return F.layer_norm(x, x.shape[-2:])

    assert made(Whole(), [1.0, -1.0], torch.randn(4, 3, 2)) is None
    running = nn.InstanceNorm2d(2, track_running_stats=True)
    got = made(running, [1.0, -1.0], torch.randn(2, 2, 4, 4), dim=1)
    assert got is None or got.tolist() == pytest.approx([1.0, -1.0], abs=1e-4)  # as a batch norm, by its statistics
