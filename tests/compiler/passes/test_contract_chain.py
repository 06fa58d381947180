"""Which layers of a chain merge: the cheapest cut, and why the others stay."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import layercollapse as lc
from layercollapse.compiler.frontend.lower import lower
from layercollapse.compiler.passes.context import PassContext
from layercollapse.compiler.passes.contract_chain import merge_in_sequence


def brute_force(sizes: list[int]) -> int:
    """Fewest weights over all ways to merge a chain of linear layers of these sizes."""
    inner = range(1, len(sizes) - 1)
    return min(
        sum(a * b for a, b in itertools.pairwise([sizes[0], *(sizes[i] for i in kept), sizes[-1]]))
        for count in range(len(sizes) - 1)
        for kept in itertools.combinations(inner, count)
    )


@pytest.mark.parametrize(
    "sizes", [[6, 2, 6], [6, 9, 6], [8, 1, 8, 1, 8], [5, 9, 2, 9, 5, 3], [4, 4, 4, 4], [16, 3, 10, 2, 12, 16, 1, 9]]
)
def test_the_cheapest_cut_of_a_linear_chain(sizes: list[int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))).double()
    x = torch.randn(4, sizes[0]).double()
    result = lc.collapse(model, x, None, cost="macs", tolerance=1e-12)
    assert sum(p.numel() for p in result.model.parameters() if p.ndim == 2) == brute_force(sizes)


class Linear3(nn.Module):
    """Three padded convolutions in sequence, with the rectifiers gone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, k, padding=k // 2) for k in (3, 3, 1))

    def forward(self, x):
        return self.c(self.b(self.a(x)))


def test_what_stays_says_why() -> None:
    model, x = Linear3(), torch.randn(2, 3, 8, 8)
    result = lc.collapse(model, x, None)
    assert result.after.depth == 2  # the pointwise convolution joins the one before
    (pair,) = result.kept
    assert pair == "a → c"
    assert "border" in result.kept[pair]
    assert "border" in result.explain()
    bottleneck = nn.Sequential(nn.Linear(64, 2), nn.Linear(2, 64))
    result = lc.collapse(bottleneck, torch.randn(2, 64), None, cost="macs")
    assert "16.0 times the multiply-accumulates" in result.explain()


def test_measured_time_decides_where_it_is_asked_for() -> None:
    model, x = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 64)), torch.randn(2, 64)
    for one_is_faster in (True, False):
        net = lower(lc.capture(model, x), model)

        def clock(op, shape, one_is_faster=one_is_faster) -> float:
            assert shape == (2, op.inputs)
            merged = op.inputs == op.outputs
            return 1.0 if merged == one_is_faster else 3.0

        context = PassContext(clock)
        assert merge_in_sequence(net, context) == one_is_faster
        assert bool(context.kept) != one_is_faster
        if not one_is_faster:
            assert "3.000 ms instead of 2.000 ms" in next(iter(context.kept.values()))


def test_what_is_far_more_work_is_not_measured() -> None:
    """256 → 4 → 256: one layer is 32 times the work of two; with 64 between, twice."""
    for width, measured in ((4, False), (64, True)):
        model, x = nn.Sequential(nn.Linear(256, width), nn.Linear(width, 256)), torch.randn(2, 256)
        net, seen = lower(lc.capture(model, x), model), set[tuple[int, int]]()

        def clock(op, shape, seen=seen) -> float:
            seen.add((op.inputs, op.outputs))
            return 1.0

        context = PassContext(clock)
        assert merge_in_sequence(net, context) == measured  # one of 1 ms instead of two
        assert ((256, 256) in seen) == measured
        assert measured or context.kept == {("0", "1"): "merged they need 32.0 times the multiply-accumulates"}


def test_errors() -> None:
    with pytest.raises(lc.LayerCollapseError, match="cost: expected 'latency' or 'macs', got 'speed'"):
        lc.collapse(nn.Linear(2, 2), torch.zeros(1, 2), None, cost="speed")


class Attention(nn.Module):
    """What stands between the layers of a transformer, a sum, and a layer that two others read."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out, self.up, self.down, self.side = (nn.Linear(4, 4) for _ in range(7))
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        v = self.v(x)
        y = (self.q(x) @ self.k(x).transpose(-1, -2)).softmax(-1) @ v
        x = x + self.out(y)
        z = self.up(self.norm(x).tanh())
        return self.down(z), self.side(z).relu()


def test_what_stands_between_layers_is_named() -> None:
    result = lc.collapse(Attention(), torch.randn(2, 3, 4), None)
    assert result.kept["v → out"] == "between them: matmul"
    assert result.kept["q → out"] == "between them: matmul, softmax"
    assert result.kept["out → up"].startswith("between them: add, ")
    assert "tanh" in result.kept["out → up"]
    assert result.kept["up → down"] == "the first is also read by side"
    assert "q → out, k → out: kept in sequence: between them" not in result.explain()  # k passes through a transpose
    assert "q → out: kept in sequence: between them: matmul, softmax" in result.explain()
    many = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(4, 4), nn.Softmax(-1))))
    assert (
        "0 → 2, 2 → 4, 4 → 6 and 2 more pairs: kept in sequence: between them: softmax"
        in lc.collapse(many, torch.randn(2, 4), None).explain()
    )
