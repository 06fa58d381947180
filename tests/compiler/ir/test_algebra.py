"""One layer of two: its size is known before its weight is computed, and the weight is that of the two, exactly."""

from __future__ import annotations

import importlib
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layercollapse as lc
from layercollapse.compiler.analysis.cost import macs
from layercollapse.compiler.ir.algebra import add, compose, diagonal, mergeable, stack
from layercollapse.compiler.ir.records import Affine, ChannelAffine, ConvGeometry
from layercollapse.compiler.ir.weights import Deferred, computed, raw_weight

merge = importlib.import_module("layercollapse.compiler.ir.algebra")


def apply(op: Affine, x: Tensor) -> Tensor:
    """What a record says, by torch alone."""
    w = op.geometry
    if not w.kernel:
        return F.linear(x, op.weight, op.bias)
    dims = len(w.kernel) - 1

    def run(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        if w.output_padding is None:
            return (F.conv1d, F.conv2d, F.conv3d)[dims](x, weight, bias, w.stride, w.padding, w.dilation, groups)
        turned = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        turn = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims]
        return turn(x, turned, bias, w.stride, w.padding, w.output_padding, groups, w.dilation)

    out = run(x, op.weight, op.bias, op.groups)
    return (
        out
        if op.border_weight is None
        else out + run(torch.ones_like(x[:, :1]), op.border_weight.unsqueeze(1), None, 1)
    )


def drawn(rng: random.Random, inputs: int, dims: int, dtype: torch.dtype = torch.float64) -> Affine:
    """A layer over so many channels: a convolution of any kind, or, without dimensions, a linear layer."""
    groups = rng.choice([g for g in (1, 1, 2, 3, inputs) if inputs % g == 0]) if dims else 1
    outputs = groups * rng.choice((1, 1, 2, 3))
    window = ConvGeometry()
    if dims:
        kernel = tuple(rng.choice((1, 1, 2, 3)) for _ in range(dims))
        if rng.random() < 0.4:
            kernel = (1,) * dims
        padding = tuple(0 if max(kernel) == 1 or rng.random() < 0.5 else rng.randrange(k) for k in kernel)
        stride, dilation = (tuple(rng.choice((1, 1, 2)) for _ in range(dims)) for _ in range(2))
        more = tuple(s - 1 for s in stride) if rng.random() < 0.2 else None
        window = ConvGeometry(kernel, stride, padding, dilation, more)
    plane = None
    if window.border_sensitive and rng.random() < 0.3:
        plane = torch.randn(outputs, *window.kernel).double()
    bias = torch.randn(outputs).double() if rng.random() < 0.7 else torch.zeros(outputs).double()
    return Affine(torch.randn(outputs, inputs // groups, *window.kernel).double(), bias, window, groups, dtype, plane)


@pytest.mark.parametrize("dims", [0, 1, 2, 3])
def test_the_size_of_a_merged_layer_is_known_and_its_values_are_right(dims: int) -> None:
    """In sequence, beside each other, with scales and identities, and these in turn merged with one more."""
    rng = random.Random(dims)
    torch.manual_seed(dims)
    counts = dict.fromkeys(("sequence", "grouped", "transposed", "plane", "sum"), 0)
    for _ in range(150):
        first = drawn(rng, rng.choice((2, 3, 6)), dims)
        x = torch.randn(2, first.inputs, *(9 + i for i in range(dims))).double()
        other = drawn(rng, first.inputs, dims)
        if rng.random() < 0.3:
            other = replace(first, weight=torch.randn(first.size).double(), border_weight=None)
        scale = ChannelAffine(
            torch.randn(first.inputs).double(), torch.randn(first.inputs).double(), first.channel_dim, x.dtype
        )
        second = drawn(rng, first.outputs, dims)
        made: list[tuple[Affine | None, Tensor]] = []
        y = apply(first, x)
        if mergeable(first, second) and (not dims or min(y.shape[2:]) >= 6):
            made.append((compose(first, second), apply(second, y)))
            third = drawn(rng, second.outputs, dims)
            both = made[-1][0]
            if mergeable(both, third) and (not dims or min(made[-1][1].shape[2:]) >= 6):
                made.append((compose(both, third), apply(third, made[-1][1])))
            counts["sequence"] += 1
        if other.outputs == first.outputs and other.geometry.transposed == first.geometry.transposed:
            z = apply(other, x)
            if z.shape == y.shape:
                made.append((add(first, other), y + z))
                counts["sum"] += made[-1][0] is not None
                if not first.geometry.transposed:
                    made.append((stack(first, other), torch.cat([y, z], first.channel_dim)))
        beside = diagonal(first, scale)
        if beside is not None:
            factor, shift = (v.reshape(-1, *[1] * dims) for v in (scale.scale, scale.shift))
            if y.shape == x.shape:
                made.append((add(first, beside), y + x * factor + shift))
        for op, expected in made:
            if op is None:
                continue
            assert isinstance(raw_weight(op), Deferred)
            now = computed(op)
            assert op.size == now.weight.shape == (len(op.bias), op.inputs // op.groups, *op.geometry.kernel)
            assert macs(op, expected.shape) == macs(now, expected.shape)
            assert now.border_weight is None or now.border_weight.shape == (op.outputs, *op.geometry.kernel)
            torch.testing.assert_close(apply(now, x), expected, atol=1e-11, rtol=1e-11)
            counts["grouped"] += op.groups > 1
            counts["transposed"] += op.geometry.transposed
            counts["plane"] += op.border_weight is not None
    assert counts["sequence"] > 40
    assert counts["sum"] > 3
    assert not dims or min(counts["grouped"], counts["plane"]) > 10
    assert not dims or counts["transposed"] > 0


def conv(outputs: int, inputs: int, kernel: int, groups: int, padding: int = 0) -> Affine:
    window = ConvGeometry((kernel,) * 2, (1, 1), (padding,) * 2, (1, 1))
    weight = torch.randn(outputs, inputs // groups, kernel, kernel).double()
    return Affine(weight, torch.zeros(outputs).double(), window, groups, torch.float64)


def test_depthwise_and_pointwise_multiply_weight_by_weight() -> None:
    """Each entry is one product, so it is equal, not only close; two depthwise layers stay depthwise."""
    torch.manual_seed(0)
    depthwise, pointwise = conv(6, 6, 3, 6, 1), conv(4, 6, 1, 1)
    merged = compose(depthwise, pointwise)
    assert (merged.groups, merged.size) == (1, (4, 6, 3, 3))
    assert torch.equal(merged.weight, pointwise.weight * depthwise.weight.transpose(0, 1))
    narrow = conv(6, 4, 1, 1)
    merged = compose(narrow, depthwise)
    assert (merged.groups, merged.size) == (1, (6, 4, 3, 3))
    assert torch.equal(merged.weight, narrow.weight * depthwise.weight)
    scale = conv(6, 6, 1, 6)
    merged = compose(depthwise, scale)
    assert (merged.groups, merged.size) == (6, (6, 1, 3, 3))
    assert torch.equal(merged.weight, scale.weight * depthwise.weight)


def test_groups_multiply_block_by_block() -> None:
    """Groups of 2 and 6 give 2 groups; each block is that of the dense layers cut out."""
    torch.manual_seed(0)
    first, second = conv(12, 6, 1, 6), conv(8, 12, 3, 2)
    merged = compose(first, second)
    assert (merged.groups, merged.size) == (2, (8, 3, 3, 3))
    dense = torch.einsum("omyx,mi->oiyx", second.dense(), first.dense()[:, :, 0, 0])
    torch.testing.assert_close(merged.dense(), dense, atol=1e-14, rtol=1e-14)


class Wide(nn.Module):
    """A depthwise convolution of 31×31 before a pointwise one, in sequence or beside a skip, of large networks."""

    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        self.depthwise = nn.Conv2d(48, 48, 31, padding=15, groups=48)
        self.pointwise = nn.Conv2d(48, 48, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pointwise(self.depthwise(x))
        return (x + y if self.skip else y).relu()


@pytest.mark.parametrize("skip", [False, True])
def test_a_merge_that_costs_more_is_never_computed(skip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    multiplied = merge._multiplied

    def watched(*args: object) -> Tensor:
        result = multiplied(*args)
        computed.append(result.numel())
        return result

    monkeypatch.setattr(merge, "_multiplied", watched)
    model, x = Wide(skip), torch.randn(1, 48, 8, 8)
    result = lc.collapse(model, x, None, cost="macs")
    assert result.after.macs == 8 * 8 * (48 * 31 * 31 + 48 * 48)
    assert max(computed, default=0) <= 48 * 31 * 31  # dense, it would be 48 times as many
    torch.testing.assert_close(result.model(x), model(x), atol=1e-5, rtol=1e-5)


def test_a_weight_made_of_thousands_is_computed_without_recursion_and_each_once() -> None:
    """2 · 2 · … of 3,000 layers, each read twice by the next: without sharing these are 2³⁰⁰⁰ products."""
    calls = 0

    def both(a: Tensor, b: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return (a + b) / 2

    weight = Deferred((1, 1), (torch.ones(1, 1).double(),), lambda x: 2 * x)
    for _ in range(3000):
        weight = Deferred((1, 1), (weight, weight), both)
    assert weight.tensor().item() == 2
    assert calls == 3000


def test_a_deferred_weight_is_scaled_and_taken_before_it_is_computed() -> None:
    weight = Deferred((2, 3), (torch.arange(6.0).double(),), lambda x: x.reshape(2, 3))
    some = weight.scaled(torch.tensor([1.0, 10.0]).double()).taken(columns=torch.tensor([True, False, True]))
    assert some.size() == (2, 2)
    assert some.tensor().tolist() == [[0, 2], [30, 50]]
    assert some.nonzero().tolist() == [[False, True], [True, True]]
    assert some.taken(rows=torch.tensor([False, True])).tensor().tolist() == [[30, 50]]


def test_a_padding_does_not_move_through_a_transposed_convolution() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 3, 2), nn.Conv2d(3, 2, 3, padding=1), nn.ConvTranspose2d(2, 2, 2))
    x = torch.randn(2, 2, 5, 5)
    result = lc.collapse(model, x, None, cost="macs", mode="repad")
    assert not result.repadded
    torch.testing.assert_close(result.model(x), model(x))


def affine(weight: torch.Tensor, bias: torch.Tensor, **window: int) -> Affine:
    dims = weight.ndim - 2
    settings = {"stride": 1, "padding": 0, "dilation": 1, **window}
    shape = ConvGeometry(
        tuple(weight.shape[2:]), *((settings[name],) * dims for name in ("stride", "padding", "dilation"))
    )
    return Affine(weight, bias, shape, 1, torch.float64)


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize(
    ("k1", "s1", "d1", "p1"), [(1, 1, 1, 0), (1, 2, 1, 0), (3, 1, 1, 1), (3, 2, 1, 0), (2, 1, 2, 1)]
)
@pytest.mark.parametrize(("k2", "s2", "d2"), [(1, 1, 1), (3, 1, 1), (3, 2, 1), (2, 1, 2)])
def test_compose(k1: int, s1: int, d1: int, p1: int, k2: int, s2: int, d2: int, padding: int) -> None:
    torch.manual_seed(0)
    first = affine(torch.randn(4, 3, k1, k1).double(), torch.randn(4).double(), stride=s1, padding=p1, dilation=d1)
    second = affine(
        torch.randn(5, 4, k2, k2).double(), torch.randn(5).double(), stride=s2, padding=padding, dilation=d2
    )
    assert mergeable(first, second) == (padding == 0 or (k1 == 1 and p1 == 0))
    if mergeable(first, second):
        for size in (11, 12):
            x = torch.randn(2, 3, size, size + 3).double()
            torch.testing.assert_close(apply(compose(first, second), x), apply(second, apply(first, x)))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"k": 3, "padding": 1}, {"k": 1}),
        ({"k": 3, "padding": 1}, {"k": 5, "padding": 2}),
        ({"k": 3, "padding": 2, "dilation": 2}, {"k": 1}),
        ({"k": 3, "padding": 2, "dilation": 2}, {"k": 3, "padding": 1}),
        ({"k": 3, "padding": 1, "stride": 2}, {"k": 1, "stride": 2}),
        ({"k": 2}, {"k": 2}),
    ],
)
def test_add(one: dict, two: dict) -> None:
    torch.manual_seed(0)
    ops = []
    for settings in (dict(one), dict(two)):
        k = settings.pop("k")
        ops.append(affine(torch.randn(4, 3, k, k).double(), torch.randn(4).double(), **settings))
    merged = add(*ops)
    assert merged is not None
    for size in (7, 8):
        x = torch.randn(2, 3, size, size + 1).double()
        torch.testing.assert_close(apply(merged, x), apply(ops[0], x) + apply(ops[1], x))


def test_add_refuses_windows_of_different_sizes() -> None:
    same, valid = (affine(torch.ones(1, 1, 3, 3).double(), torch.zeros(1).double(), padding=p) for p in (1, 0))
    assert add(same, valid) is None
