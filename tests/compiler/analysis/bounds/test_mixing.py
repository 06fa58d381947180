"""Bounds behind layer norms and attention: what no row leaves, and rows that come near."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layercollapse as lc
from layercollapse.compiler.analysis.bounds.interval import Interval
from layercollapse.compiler.analysis.bounds.propagate import bounds
from layercollapse.compiler.frontend.lower import lower


def last(model: nn.Module, x: Tensor, box: Any = None) -> Interval | None:
    """The bounds of a model's output."""
    capture = lc.capture(model, x)
    net = lower(capture, model)
    known = bounds(net, None if box is None else {capture.inputs[0]: box})
    output = next(node for node in net.graph.nodes if node.op == "output")
    return known.get(output.args[0][0])


def hardest(layer: nn.Module, norm: nn.Module) -> Tensor:
    """Rows that are normalized to the lowest and the highest value of each neuron, exact in float64: (2 O, d)."""
    weight = layer.weight.data.double() * norm.weight.data.double()
    rows = weight - weight.mean(1, keepdim=True) * isinstance(norm, nn.LayerNorm)
    return torch.cat([rows, -rows]) / rows.abs().amax().clamp(min=1e-3)


def drawn(kind: type[nn.Module], entries: int, eps: float, dtype: torch.dtype, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(kind(entries, eps=eps), nn.Linear(entries, 9))
    model[0].weight.data.uniform_(-2, 2)
    if kind is nn.LayerNorm:
        model[0].bias.data.uniform_(-1, 1)
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("entries", [1, 2, 3, 7, 64, pytest.param(769, marks=pytest.mark.long)])
def test_a_linear_layer_behind_a_norm_against_its_hardest_rows(
    kind: type[nn.Module], entries: int, dtype: torch.dtype
) -> None:
    for seed, eps in enumerate((1e-5, 1e-12, 1e-6)):
        model = drawn(kind, entries, eps, dtype, seed)
        found = last(model, torch.zeros(2, entries, dtype=dtype))
        assert found is not None
        hard = hardest(model[1], model[0])
        spikes = torch.eye(entries, dtype=torch.float64)
        rows = torch.cat([hard, spikes, -spikes, torch.randn(50, entries).double(), torch.ones(1, entries).double()])
        most = 4.0 if dtype == torch.float16 else 18.0
        for scale in (10**power for power in torch.linspace(-most, most, 13).tolist()):
            for mean in (0.0, 1.0, 30.0):
                x = (rows * scale + mean * scale).to(dtype)
                # The condition of the claim: a mean of at most 64 standard deviations.
                wide = x.double()
                steady = wide.square().mean(1) <= 64**2 * (wide.var(1, correction=0) + eps)
                y = model(x).detach().double()
                inside = ((y >= found.low) & (y <= found.high)) | y.isnan()
                assert bool(inside[steady | (kind is nn.RMSNorm)].all())
        # Not wider than needed: the hardest rows come near.
        if entries > 2 and dtype in (torch.float32, torch.float64):
            y = model((hard * 1e3).to(dtype)).detach().double()
            reach = y.amax(0) - y.amin(0)
            assert bool((reach >= 0.94 * (found.high - found.low)[0]).all())


def test_the_norm_alone() -> None:
    model = nn.Sequential(nn.LayerNorm(5), nn.Hardtanh(-9, 9))
    model[0].weight.data = torch.tensor([1.0, -2.0, 0.0, 0.5, 1.0])
    model[0].bias.data = torch.tensor([0.0, 1.0, 3.0, 0.0, -1.0])
    found = last(model, torch.zeros(2, 5))
    assert found is not None
    expected = 2 * torch.tensor([1.0, 2.0, 0.0, 0.5, 1.0]).double()  # √(5 − 1)
    torch.testing.assert_close(found.high[0], model[0].bias.data + expected, atol=0.01, rtol=0)
    torch.testing.assert_close(found.low[0], model[0].bias.data - expected, atol=0.01, rtol=0)
    y = model(torch.cat([torch.eye(5), -torch.eye(5)]) * 1e6).detach()
    assert bool(((y >= found.low) & (y <= found.high)).all())
    torch.testing.assert_close(y.amax(0), found.high[0].float(), atol=0.01, rtol=0)


def test_what_overflows_or_is_constant_stays_in_bounds_or_is_no_number() -> None:
    for eps in (1e-5, 1e-12):
        for entries in (2, 3, 64):
            model = drawn(nn.LayerNorm, entries, eps, torch.float32, 0)
            found = last(model, torch.zeros(2, entries))
            assert found is not None
            rows = [torch.full((entries,), value) for value in (0.0, 0.1, -3.3, 1e4, 1e30, 3e38, 1e-40)]
            rows += [torch.randn(entries) * value for value in (1e19, 1e25, 1e38, 1e-25, 1e-40)]
            y = model(torch.stack(rows)).detach().double()
            assert bool((((y >= found.low) & (y <= found.high)) | y.isnan()).all())


class Behind(nn.Module):
    """A function of normalized rows, and a linear layer behind it."""

    def __init__(self, function: Callable[[Tensor], Tensor], eps: float = 1e-5) -> None:
        super().__init__()
        self.norm, self.linear, self.function = nn.LayerNorm(8, eps=eps), nn.Linear(8, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.function(self.norm(x)))


def test_rows_may_be_moved_on_their_way_to_the_layer() -> None:
    x = torch.zeros(2, 4, 6, 8)
    direct = last(Behind(lambda y: y), x)
    assert direct is not None
    for function in (
        lambda y: y.reshape(-1, 8),
        lambda y: y.flatten(0, 2),
        lambda y: y.transpose(1, 2).contiguous().view(-1, 24, 8),
        lambda y: y[:, 1, 2:],
        lambda y: y.reshape(-1, 2, 2, 3, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 8),
    ):
        moved = last(Behind(function), x)
        assert moved is not None
        width, expected = ((ends.high - ends.low).flatten() for ends in (moved, direct))
        assert bool((width < 3 * expected).all())  # other weights, the same bound
        assert bool((width < 0.8 * 2 * 7**0.5 * 8 * 8**-0.5).all())
    # Entries of different rows in one: only what holds for each alone.
    model = Behind(lambda y: y.transpose(2, 3).reshape(-1, 4, 6, 8))
    mixed = last(model, x)
    assert mixed is not None
    reach = 7**0.5 * model.linear.weight.data.abs().sum(1).double()
    assert bool(((mixed.high - mixed.low).flatten() >= 2 * reach).all())


def test_nothing_is_claimed_without_an_epsilon() -> None:
    assert last(Behind(lambda y: y, eps=0.0), torch.zeros(2, 8)) is None


class Attention(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.joined = kind, nn.Linear(6, 18)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (2, 3)).transpose(1, 2) for y in self.joined(x).chunk(3, -1))
        if self.kind == "written":
            y = F.dropout((q @ k.transpose(-2, -1)).softmax(-1), 0.1, self.training) @ v
        else:
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(-1) if self.kind == "masked" else None
            y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=self.kind == "causal")
        return y.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["plain", "causal", "masked", "written"])
def test_attention_gives_no_more_than_its_values(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Attention(kind).eval().to(dtype)
    model.joined.weight.data[:12] *= 50  # each position attends to one other
    model.joined.bias.data[12:] += torch.tensor([5.0, -5.0, 0.0, 5.0, -5.0, 0.0])
    x = torch.where(torch.rand(4000, 4, 6) < 0.5, -1.0, 1.0).to(dtype)
    found = last(model, x[:2], (-1.0, 1.0))
    assert found is not None
    y = model(x).detach().double()
    assert bool(((y >= found.low) & (y <= found.high)).all())
    # Per head and channel, and reached: at some corner of the box all of a channel's products are lowest, or highest.
    values = model.joined(x).detach().double()[..., 12:]
    low, high = values.amin((0, 1)), values.amax((0, 1))
    if kind == "masked":
        low, high = low.clamp(max=0), high.clamp(min=0)
    room = 0.003 if dtype == torch.float32 else 0.2
    assert bool(((found.low.flatten() <= low) & (found.low.flatten() >= low - room * (1 + low.abs()))).all())
    assert bool(((found.high.flatten() >= high) & (found.high.flatten() <= high + room * (1 + high.abs()))).all())


class OneHead(nn.Module):
    """Two heads that read the values of one."""

    def __init__(self) -> None:
        super().__init__()
        self.joined = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, v = x.unflatten(-1, (2, 3)).transpose(1, 2), self.joined(x).unsqueeze(1)
        return F.scaled_dot_product_attention(q, v, v, enable_gqa=True)


def test_heads_may_share_their_values() -> None:
    torch.manual_seed(0)
    model, x = OneHead(), torch.where(torch.rand(4000, 4, 6) < 0.5, -1.0, 1.0)
    found = last(model, x[:2], (-1.0, 1.0))
    assert found is not None
    y = model(x).detach().double()
    assert bool(((y >= found.low) & (y <= found.high)).all())
    direct = last(model.joined, x[:2], (-1.0, 1.0))
    assert direct is not None
    torch.testing.assert_close(found.high.flatten(), direct.high.flatten(), atol=0, rtol=0.003)


@pytest.mark.parametrize("norm", [nn.functional.layer_norm, nn.functional.rms_norm])
def test_a_norm_over_as_many_entries_as_come(norm: Any) -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(3, 4, 3, padding=1)

        def forward(self, x):
            y = self.conv(x)
            return torch.relu(norm(y, y.shape[-1:]))

    model = Computed().double()
    result = lc.collapse(model, torch.rand(2, 3, 6).double(), None, cost="macs")
    x = torch.rand(2, 3, 9).double()
    torch.testing.assert_close(result.model(x), model(x), rtol=0, atol=1e-12)
