"""Which layers of a chain merge: the cheapest cut, the fewest layers, and why the others stay."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import layercollapse as lc
from layercollapse.compiler.backend.emit import emit
from layercollapse.compiler.frontend.lower import lower
from layercollapse.compiler.ir.records import Affine
from layercollapse.compiler.passes.context import Group, PassContext
from layercollapse.compiler.passes.contract import contract
from layercollapse.compiler.passes.registry import run_passes
from networks import Model


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


def contracted(model: nn.Module, x: torch.Tensor, context: PassContext) -> list[tuple[int, ...]]:
    """The sizes of the layers that are left."""
    net = lower(lc.capture(model, x), model)
    run_passes(net, context)
    sizes = [op.size for _, op in net.records(Affine)]
    torch.testing.assert_close(emit(net)(x), model(x), atol=1e-4, rtol=1e-4)
    return sizes


def test_the_fewest_layers_where_work_does_not_matter() -> None:
    """256 → 4 → 256: one layer is 32 times the work of two, which nobody need time; with 64 between, twice."""
    thrift = PassContext(lambda name: {Group.THRIFT})
    for width, one in ((4, False), (64, True)):
        model, x = nn.Sequential(nn.Linear(256, width), nn.Linear(width, 256)), torch.randn(2, 256)
        assert contracted(model, x, PassContext()) == [(width, 256), (256, width)]
        assert contracted(model, x, thrift) == ([(256, 256)] if one else [(width, 256), (256, width)])
    chain = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise([8, 2, 8, 2, 8])))
    assert contracted(chain, torch.randn(2, 8), PassContext()) == [(2, 8), (8, 2)]
    # Where it does not matter at one of the narrow tensors, the other stays.
    for narrow, sizes in ((("_0",), [(2, 8), (8, 2)]), (("_0", "_2"), [(8, 8)])):
        some = PassContext(lambda name, narrow=narrow: {Group.THRIFT} if name in narrow else ())
        assert contracted(chain, torch.randn(2, 8), some) == sizes


class Branch(nn.Module):
    """x + B A x, which one layer is four times the work of, and a narrow layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 2), nn.Linear(2, 16), nn.Linear(16, 16)

    def forward(self, x):
        return self.c((x + self.b(self.a(x))).tanh()) + x


def test_the_fewest_layers_where_paths_meet() -> None:
    torch.manual_seed(0)
    assert contracted(Branch(), torch.randn(2, 16), PassContext()) == [(2, 16), (16, 2), (16, 16)]
    assert contracted(Branch(), torch.randn(2, 16), PassContext(lambda name: {Group.THRIFT})) == [(16, 16), (16, 16)]


def test_who_acted_and_whose_padding_moved() -> None:
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(2, 4)
    wide = nn.Sequential(nn.Conv2d(2, 40, 3, padding=1), nn.Conv2d(40, 2, 3, padding=1)), torch.randn(2, 2, 9, 9)
    beside = Model(lambda m, x: m.a(x) + m.b(x), a=nn.Linear(4, 4), b=nn.Linear(4, 4)), torch.randn(2, 4)
    for (model, x), groups, moved in (
        (chain, {Group.SEQUENCE}, []),
        (beside, {Group.PARALLEL}, []),
        (wide, {Group.SEQUENCE}, [("0", "1")]),
    ):
        context, net = PassContext(repad=True), lower(lc.capture(model, x), model)
        assert contract(net, context)
        assert not contract(net, context)
        assert (context.applied, context.repadded) == (groups, moved)
        context = PassContext(omitted=lambda name, groups=groups: groups, repad=True)
        assert not contract(lower(lc.capture(model, x), model), context)
        assert (context.applied, context.repadded) == (set(), [])


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
