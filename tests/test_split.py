"""Layers that are products of smaller ones: found whichever way they were multiplied, and nothing else is."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import layercollapse as lc
from layercollapse.collapse import search, split
from layercollapse.collapse.lowrank import LARGEST, factors, needs_more, sample_size

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
# Letters: o outputs, i inputs, r between; z, y, x taps. The weight is (o, i, taps), without i for depthwise layers.
SIZES = {"o": 12, "i": 10, "r": 2, "z": 3, "y": 3, "x": 5}
WAYS = [
    ("or,ri->oi", 2),
    ("or,rix->oix", 2),
    ("orx,ri->oix", 2),
    ("or,riyx->oiyx", 2),
    ("oryx,ri->oiyx", 2),
    ("orx,riy->oiyx", 2),
    ("ory,rix->oiyx", 2),
    ("oi,ox->oix", 12),  # a 1x1 convolution, then a depthwise one
    ("ix,oi->oix", 10),  # a depthwise one, then 1x1
    ("oi,oyx->oiyx", 12),
    ("iyx,oi->oiyx", 10),
    ("oy,ox->oyx", 12),
    ("oz,oyx->ozyx", 12),
    ("orz,riyx->oizyx", 2),
    ("orzx,riy->oizyx", 2),
]
WINDOWS = [
    {"padding": 2, "stride": 2},
    *(pytest.param(w, marks=pytest.mark.long) for w in ({}, {"padding": 1}, {"padding": 1, "dilation": 2})),
]


@pytest.fixture(autouse=True)
def any_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is less work is split: the layers here are small, and save less than half."""
    monkeypatch.setattr(split, "_WORTH", 1.0)


def product(way: str, dtype: torch.dtype) -> torch.Tensor:
    """A random weight that is a product, computed in the dtype that it has."""
    sizes = [[SIZES[letter] for letter in part] for part in way.partition("->")[0].split(",")]
    return torch.einsum(way, *(torch.randn(size, dtype=dtype) for size in sizes))


def layer(way: str, dtype: torch.dtype, **window: int) -> nn.Module:
    weight = product(way, dtype)
    taps = tuple(SIZES[letter] for letter in way.split("->")[1] if letter in "zyx")
    if not taps:
        made: nn.Module = nn.Linear(SIZES["i"], SIZES["o"])
    else:
        depthwise = "i" not in way
        inputs = SIZES["o"] if depthwise else SIZES["i"]
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(taps) - 1]
        made = kind(inputs, SIZES["o"], taps, groups=inputs if depthwise else 1, **window)
    made = made.to(dtype)
    made.weight.data.copy_(weight.reshape(made.weight.shape))
    return made


def images(model: nn.Module, size: int) -> torch.Tensor:
    weight = next(model.parameters())
    channels = weight.shape[1] * getattr(model, "groups", 1)
    return 0.1 * torch.randn(2, channels, *[size] * (weight.ndim - 2), dtype=weight.dtype)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("way", "between"), WAYS)
def test_a_product_is_found_and_exact_at_the_border(
    way: str, between: int, dtype: torch.dtype, window: dict[str, int]
) -> None:
    torch.manual_seed(0)
    model = layer(way, dtype, **window if way != "or,ri->oi" else {})
    x = images(model, 9)
    result = lc.collapse(nn.Sequential(model), x, None, cost="macs")
    assert f"0: split into 0.0, 0.1 with {between} channels between: 0." in result.explain()
    assert result.after.macs < result.before.macs
    assert result.after.parameters < result.before.parameters
    assert not result.kept
    for other in (x, images(model, 12)):
        expected = model(other)
        error = (result.model(other) - expected).detach().abs().max() / expected.detach().abs().max()
        assert float(error) < TOLERANCES[dtype]


def test_as_few_multiplications_as_the_factors_had() -> None:
    torch.manual_seed(0)
    model = layer("orx,riy->oiyx", torch.float32, padding=1)
    x = images(model, 9)
    result = lc.collapse(nn.Sequential(model), x, None, cost="macs")
    # 2 x 10 x 3 weights over 9 x 9 positions, then 12 x 2 x 5 over 9 x 7.
    assert result.after.macs == 2 * (60 * 81 + 120 * 63)
    assert "0.11 times the multiply-accumulates" in result.explain()
    assert [tuple(p.shape) for p in result.model.parameters() if p.ndim > 1] == [(2, 10, 3, 1), (12, 2, 1, 5)]


def test_groups_are_split_each() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(16, 24, 3, padding=1, groups=2).double()
    for group, rank in ((0, 1), (1, 2)):
        low = torch.randn(12, rank).double() @ torch.randn(rank, 72).double()
        model.weight.data[12 * group : 12 * group + 12] = low.reshape(12, 8, 3, 3)
    x = images(model, 8)
    result = lc.collapse(nn.Sequential(model), x, None, cost="macs")
    torch.testing.assert_close(result.model(x), model(x))
    first = result.model.get_submodule("0.0")
    assert (first.groups, first.out_channels) == (2, 4)  # the larger rank, for both


def test_a_gaussian_blur_takes_a_layer_for_every_axis() -> None:
    torch.manual_seed(0)
    line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0])
    blur = nn.Conv3d(4, 4, 5, padding=2, groups=4)
    blur.weight.data.copy_(torch.einsum("z,y,x->zyx", line, line, line).expand(4, 1, 5, 5, 5) / 4096)
    x = images(blur, 6)
    result = lc.collapse(nn.Sequential(blur), x, None, cost="macs")
    assert sorted(tuple(m.kernel_size) for m in result.model.modules() if isinstance(m, nn.Conv3d)) == [
        (1, 1, 5),
        (1, 5, 1),
        (5, 1, 1),
    ]
    assert "0.0, 0.1, 0.2 with 4 and 4 channels between: 0.12 times" in result.explain()
    torch.testing.assert_close(result.model(x), blur(x))
    assert result.kept == {}


@pytest.mark.parametrize("way", ["orx,riy->oiyx", "oryx,ri->oiyx", "or,riyx->oiyx"])
def test_constants_that_meet_a_padding(way: str) -> None:
    """The bias of the first layer becomes a plane of the second when they merge; the sum is then split."""
    torch.manual_seed(0)
    second = layer(way, torch.float64, padding=2)
    model = nn.Sequential(nn.Conv2d(8, 10, 1).double(), second)
    x = images(model[0], 7)
    result = lc.collapse(model, x, None, cost="macs")
    assert result.split
    assert any(p.shape[1] == 1 for p in result.model.parameters() if p.ndim == 4)  # the plane
    torch.testing.assert_close(result.model(x), model(x), atol=1e-10, rtol=0)
    wide = images(model[0], 11)
    torch.testing.assert_close(result.model(wide), model(wide), atol=1e-10, rtol=0)


def noisy() -> nn.Module:
    model = layer("or,riyx->oiyx", torch.float32)
    model.weight.data *= 1 + 1e-3 * torch.randn_like(model.weight)
    return model


def transposed() -> nn.Module:
    model = nn.ConvTranspose2d(8, 8, 3)
    model.weight.data.copy_((torch.randn(8, 1) @ torch.randn(1, 72)).reshape(8, 8, 3, 3))
    return model


def flat() -> nn.Module:
    """Rank 4 of 6 needs more weights than there are."""
    model = nn.Conv2d(6, 6, 1)
    model.weight.data.copy_((torch.randn(6, 4) @ torch.randn(4, 6)).reshape(6, 6, 1, 1))
    return model


def small_column() -> nn.Module:
    """A column that would drown in the rounding of the others, but reads a channel of large values."""
    model = nn.Conv2d(12, 12, 1).requires_grad_(False)
    model.weight.copy_((torch.randn(12, 1) @ torch.randn(1, 12)).reshape(12, 12, 1, 1))
    model.weight[:, :3] = 1e-9 * torch.randn(12, 3, 1, 1)
    model.weight[:, 3:6] = 1e-9 * torch.randn(12, 3, 1, 1)
    return model


@pytest.mark.parametrize("make", [noisy, transposed, flat, small_column, lambda: nn.Conv2d(12, 12, 3)])
def test_what_is_no_product_or_gains_nothing_stays(make) -> None:
    torch.manual_seed(0)
    model = make()
    x = torch.randn(1, model.in_channels, 9, 9)
    result = lc.collapse(nn.Sequential(model), x, None, cost="macs")
    assert result.split == {}
    assert result.before == result.after


def test_a_deeper_network_is_worth_half_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    torch.manual_seed(0)
    for rank, made in ((4, ["0.0", "0.1"]), (6, [])):  # 20 · rank · 2 of 400 weights, and the bias
        model = nn.Sequential(nn.Linear(20, 20))
        model[0].weight.data.copy_(torch.randn(20, rank) @ torch.randn(rank, 20))
        result = lc.collapse(model, torch.randn(3, 20), None, cost="macs")
        assert bool(result.split) == bool(made)
        assert all(name in result.explain() for name in made)


def test_shared_weights_stay_shared() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(20, 20)
    shared.weight.data.copy_(torch.randn(20, 1) @ torch.randn(1, 20))
    model = nn.Sequential(shared, nn.Tanh(), shared)
    result = lc.collapse(model, torch.randn(3, 20), None, cost="macs")
    assert (result.split, result.before) == ({}, result.after)


@pytest.mark.parametrize("between", [3, pytest.param(4, marks=pytest.mark.long)])
@pytest.mark.parametrize("drawn", [False, True])
def test_merging_and_splitting_end(drawn: bool, between: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of rank one among others, all of which may merge; and a clock that says something else each time."""
    torch.manual_seed(0)
    if drawn:
        generator = torch.Generator().manual_seed(0)
        monkeypatch.setattr(search, "Clock", lambda device: lambda op, shape: torch.rand(1, generator=generator).item())
    for sizes in itertools.product((2, 12), repeat=between):
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise((12, *sizes, 12))]
        for each in layers[::2]:
            low = torch.randn(each.out_features, 1) @ torch.randn(1, each.in_features)
            each.weight.data.copy_(low / each.in_features**0.5)
        model, x = nn.Sequential(*layers), torch.randn(3, 12)
        result = lc.collapse(model, x, None, cost="latency" if drawn else "macs")
        torch.testing.assert_close(result.model(x), model(x), atol=1e-5, rtol=1e-5)
        if not drawn:
            # The first is of rank one: all are 12 weights to one channel, and 12 from it.
            assert sum(p.numel() for p in result.model.parameters() if p.ndim == 2) == 24


def test_a_layer_behind_joins_the_second_part() -> None:
    """Padded layers do not merge, but what a split leaves in front of the second is pointwise, and does."""
    torch.manual_seed(0)
    model = nn.Sequential(layer("or,riyx->oiyx", torch.float32), nn.Conv2d(12, 12, 3, padding=1))
    x = images(model[0], 9)
    result = lc.collapse(model, x, None, cost="macs")
    shapes = {tuple(p.shape) for p in result.model.parameters() if p.ndim == 4}
    assert shapes == {(2, 10, 3, 5), (12, 2, 3, 3), (12, 1, 3, 3)}  # the last carries the bias over the border
    torch.testing.assert_close(result.model(x), model(x), atol=1e-5, rtol=1e-5)


def test_what_was_split_is_saved_and_loaded(tmp_path) -> None:
    torch.manual_seed(0)
    model = layer("orx,riy->oiyx", torch.float32, padding=1)
    x = images(model, 9)
    result = lc.collapse(nn.Sequential(model), x, None, cost="macs")
    result.save(tmp_path)
    torch.testing.assert_close(lc.load(tmp_path)(x), result.model(x))


def rounded(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A product in float64 with the errors of a sum in a lower precision, drawn: those of processors differ."""
    error = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps / 2
    noise = error * (2 * torch.rand(len(left), right.shape[1]).double() - 1) * (left.abs() @ right.abs())
    return (left @ right + noise).to(dtype).double()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(40, 40), (64, 300), (300, 64), (200, 190), (600, 60)])
def test_the_rank_of_products_and_of_others(rows: int, columns: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    most = (rows * columns - 1) // (rows + columns + 1)
    for rank in (1, most // 2, most):
        low = rounded(torch.randn(rows, rank).double(), torch.randn(rank, columns).double(), dtype)
        length, width = sample_size(rows, columns, most)
        assert not needs_more(low[:length, :width])
        left, right = factors(low[None], most, dtype)
        assert right.shape == (1, rank, columns)
        rounding = 3 * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps
        assert bool(((left @ right - low).norm(dim=-1) <= rounding * low.norm(dim=-1)).all())
    generic = torch.randn(rows, columns, dtype=torch.float64)
    assert needs_more(generic[: sample_size(rows, columns, most)[0], : sample_size(rows, columns, most)[1]])
    assert factors(generic[None], most, dtype) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_difference_above_rounding_is_part_of_the_rank(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    low = torch.randn(60, 2).double() @ torch.randn(2, 40).double()
    other = torch.randn(60, 1).double() @ torch.randn(1, 40).double()
    for size, rank in ((1e-3, 3), (1e-5, 3), (1e-9, 3 if dtype == torch.float64 else 2)):
        _, right = factors((low + size * other).to(dtype).double()[None], 20, dtype)
        assert right.shape[1] == rank


def test_a_matrix_that_is_not_finite_is_no_product() -> None:
    weight = torch.ones(1, 8, 8, dtype=torch.float64)
    weight[0, 0, 0] = torch.inf
    assert factors(weight, 3, torch.float32) is None
    assert sample_size(30000, 5000, LARGEST) == (2 * (LARGEST + 16), LARGEST + 16)
