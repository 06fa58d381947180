"""Regions with sums: the layers that are left take the fewest multiply-accumulates that any choice of them takes."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import Tensor, nn

import layercollapse as lc
from layercollapse.compiler.backend.emit import emit
from layercollapse.compiler.frontend.lower import lower
from layercollapse.compiler.ir.records import Affine
from layercollapse.compiler.passes.context import PassContext
from layercollapse.compiler.passes.contract_search import Search
from layercollapse.compiler.passes.registry import run_passes

POSITIONS = 6 * 5


class Graph(nn.Module):
    """Layers and sums of them; tensor 0 is the input, every other one a layer over one tensor or a sum of several.

    Attributes:
        reads: of every tensor but the input, those that it is made of.
        widths: channels of every tensor, the input's first.
        kernels: of every tensor but the input, its layer's; None for a sum.
    """

    def __init__(self, conv: bool, width: int) -> None:
        super().__init__()
        self.conv = conv
        self.widths = [width]
        self.reads: list[tuple[int, ...]] = []
        self.kernels: list[tuple[int, int] | None] = []
        self.layers = nn.ModuleDict()

    def layer(self, read: int, width: int, kernel: tuple[int, int] = (1, 1)) -> int:
        sizes = self.widths[read], width
        padding = kernel[0] // 2, kernel[1] // 2
        layer = nn.Conv2d(*sizes, kernel, padding=padding, bias=False) if self.conv else nn.Linear(*sizes)
        self.layers[str(len(self.widths))] = layer
        return self._add((read,), width, kernel)

    def sum(self, *reads: int) -> int:
        return self._add(reads, self.widths[reads[0]], None) if len(reads) > 1 else reads[0]

    def _add(self, reads: tuple[int, ...], width: int, kernel: tuple[int, int] | None) -> int:
        self.reads.append(reads)
        self.widths.append(width)
        self.kernels.append(kernel)
        return len(self.reads)

    def forward(self, x: Tensor) -> Tensor:
        made = [x]
        for index, reads in enumerate(self.reads, 1):
            total = sum((made[read] for read in reads[1:]), start=made[reads[0]])
            made.append(self.layers[str(index)](total) if str(index) in self.layers else total)
        return made[-1]

    def paths(self, start: int, end: int, kept: set[int]) -> Iterator[list[tuple[int, int]]]:
        """The kernels on every path from one tensor to another that goes through none that is kept."""
        for read in self.reads[end - 1]:
            own = self.kernels[end - 1]
            if read == start:
                yield [own] if own else []
            elif read and read not in kept:
                for path in self.paths(start, read, kept):
                    yield [*path, own] if own else path

    def cost(self, kept: set[int]) -> float:
        """Multiply-accumulates where these tensors stay, and every path between them is contracted."""
        total, todo, seen = 0.0, [len(self.reads)], set[int]()
        while todo:
            end = todo.pop()
            if end in seen or end == 0:
                continue
            seen.add(end)
            for start in [0, *kept]:
                paths = list(self.paths(start, end, kept))
                # A convolution that pads joins what is before it only where that reads one position.
                if any(len([kernel for kernel in path if kernel != (1, 1)]) > 1 for path in paths):
                    return math.inf
                kernels = [tuple(map(max, zip(*path, strict=True))) for path in paths if path]
                total += self.widths[start] * self.widths[end] * fewest_taps(kernels) * (POSITIONS if self.conv else 1)
                if paths:
                    todo.append(start)
        return total

    def optimum(self) -> float:
        inner = range(1, len(self.reads))
        return min(
            self.cost(set(kept)) for count in range(len(self.reads)) for kept in itertools.combinations(inner, count)
        )


def fewest_taps(kernels: list[tuple[int, ...]]) -> int:
    """Taps of centred kernels over one tensor, where each may share one that covers it."""
    if not kernels:
        return 0
    first, rest = kernels[0], kernels[1:]
    best = math.inf
    for count in range(len(rest) + 1):
        for some in itertools.combinations(range(len(rest)), count):
            union = tuple(map(max, zip(first, *(rest[i] for i in some), strict=True)))
            others = [kernel for i, kernel in enumerate(rest) if i not in some]
            best = min(best, math.prod(union) + fewest_taps(others))
    return int(best)


def drawn(seed: int, conv: bool) -> Graph:
    """Two or three paths of up to three layers, perhaps with paths in them, with a layer before, behind, or around."""
    rng = random.Random(seed)

    def width() -> int:
        return rng.choice((1, 2, 3, 8, 9))

    def kernel() -> tuple[int, int]:
        return rng.choice(((1, 1), (1, 1), (3, 3), (1, 3), (3, 1)) if conv else ((1, 1),))

    def meet(graph: Graph, start: int, end: int, deep: bool) -> int:
        """Paths from a tensor to a sum of so many channels."""
        ends = []
        for _ in range(rng.choice((2, 2, 3))):
            at, length = start, rng.choice((0, 1, 1, 2, 3))
            if length == 0 and graph.widths[start] == end:
                ends.append(at)
                continue
            for _ in range(length - 1):
                at = graph.layer(at, width(), kernel())
                if deep and rng.random() < 0.3:
                    at = meet(graph, at, width(), False)
            ends.append(graph.layer(at, end, kernel()))
        return graph.sum(*dict.fromkeys(ends))

    graph = Graph(conv, width())
    at = graph.layer(0, width(), kernel()) if rng.random() < 0.3 else 0
    start = at
    at = meet(graph, at, graph.widths[at] if rng.random() < 0.6 else width(), True)
    if rng.random() < 0.4:
        at = graph.layer(at, width(), kernel())
    if rng.random() < 0.3 and graph.widths[start] == graph.widths[at] and at != start:
        at = graph.sum(start, at)
    return graph


MORE = pytest.param(range(25, 150), marks=pytest.mark.nightly)


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("seeds", [(*range(10), 41), MORE])
def test_the_fewest_multiply_accumulates_of_all_choices(conv: bool, seeds: Iterable[int]) -> None:
    merged = 0
    for seed in seeds:
        torch.manual_seed(seed)
        model = drawn(seed, conv).double()
        if not 1 < len(model.reads) <= 11:
            continue
        size = (2, model.widths[0], 6, 5) if conv else (2, model.widths[0])
        x = torch.randn(size).double()
        result = lc.collapse(model, x, None, cost="macs", tolerance=1e-8)
        # Less where a tensor stays for one of its readers alone.
        assert result.after.macs <= 2 * model.optimum(), (seed, model, model.reads)
        assert result.after.macs <= result.before.macs
        torch.testing.assert_close(result.model(x), model(x))
        merged += result.after.macs < result.before.macs
    assert merged > 2


@pytest.mark.parametrize("skip", ["layer", "identity", "scale"])
def test_what_is_beside_a_layer_costs_nothing(skip: str) -> None:
    """B(A(x)) alone would be 8 times the work; with a layer over the same tensor it is none, with an identity it is."""
    torch.manual_seed(0)

    class Paths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.narrow, self.wide = nn.Linear(64, 64), nn.Linear(64, 4), nn.Linear(4, 64)
            self.scale = nn.Parameter(torch.rand(64))

        def forward(self, x: Tensor) -> Tensor:
            beside = {"layer": self.w, "identity": lambda x: x, "scale": lambda x: x * self.scale}[skip]
            return torch.relu(beside(x) + self.wide(self.narrow(x)) + x)

    model, x = Paths(), torch.randn(3, 64)
    result = lc.collapse(model, x, None, cost="macs", tolerance=1e-5)
    assert result.after.macs == 3 * (64 * 64 if skip == "layer" else 2 * 4 * 64)
    assert result.after.depth == (1 if skip == "layer" else 2)
    torch.testing.assert_close(result.model(x), model(x), atol=1e-5, rtol=1e-5)


def test_a_layer_behind_a_sum_of_different_tensors_goes_into_its_terms() -> None:
    torch.manual_seed(0)

    class Meet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(9, 16), nn.Linear(16, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.c(self.a(x) + self.b(y))

    model, inputs = Meet(), (torch.randn(3, 16), torch.randn(3, 9))
    result = lc.collapse(model, inputs, None, cost="macs", tolerance=1e-5)
    assert result.after.macs == 3 * 2 * (16 + 9)
    torch.testing.assert_close(result.model(*inputs), model(*inputs))


class Branches(nn.Module):
    """Blocks without a rectifier between, each the sum of 3×3 convolutions, a 1×1 one and the identity, all with norms.

    As `torch.stack(...).sum(0)` would, or one after the other: all branches are open at once, or one.
    """

    def __init__(self, blocks: int, threes: int, at_once: bool) -> None:
        super().__init__()
        self.at_once = at_once
        self.blocks = nn.ModuleList()
        for _ in range(blocks):
            convs = [nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(threes)] + [nn.Conv2d(8, 8, 1)]
            ways = [nn.Sequential(conv, nn.BatchNorm2d(8)) for conv in convs]
            self.blocks.append(nn.ModuleList([*ways, nn.BatchNorm2d(8)]))
        for norm in self.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.uniform_(-1, 1)
                norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            made = [way(x) for way in block] if self.at_once else (way(x) for way in block)
            x = sum(made)  # type: ignore[assignment]
        return x


def steps(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> int:
    """States that the search goes through where no rule but its own is applied; what comes is checked."""
    count = 0
    after = Search._after

    def counted(self: object, state: object, node: object) -> Iterator[object]:
        nonlocal count
        for new in after(self, state, node):
            count += 1
            yield new

    with monkeypatch.context() as patch:
        patch.setattr(Search, "_after", counted)
        net = lower(lc.capture(model, x), model)
        run_passes(net, PassContext())
    assert all(op.geometry.kernel == (3, 3) and op.size == (8, 8, 3, 3) for _, op in net.records(Affine))
    assert len(list(net.records(Affine))) == len(model.blocks)
    torch.testing.assert_close(emit(net)(x), model(x))
    return count


@pytest.mark.parametrize("at_once", [False, True])
def test_multi_branch_blocks_are_one_layer_each_and_take_as_many_steps_each(
    at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 8, 5, 5).double()
    two, four, wide = (
        steps(Branches(blocks, threes, at_once).double().eval(), x, monkeypatch)
        for blocks, threes in ((2, 1), (4, 1), (2, 3))
    )
    # Twice the blocks, twice the steps; twice the branches, four times at most where one is open at a time.
    assert four <= 2.5 * two
    assert wide <= (16 if at_once else 4) * two


def test_many_paths_are_no_more_work_than_they_were() -> None:
    """Beyond what is looked at together: more layers, more tensors that are read twice, more terms over one tensor."""
    torch.manual_seed(0)
    deep, wide = Graph(False, 3), Graph(False, 3)
    at = 0
    for _ in range(7):
        at = deep.sum(at, deep.layer(deep.layer(at, 1), 3))
    at = wide.layer(0, 3)
    wide.sum(at, *(wide.layer(wide.layer(at, 2), 3) for _ in range(6)))
    for model in (deep, wide):
        x = torch.randn(2, 3)
        result = lc.collapse(model, x, None, cost="macs", tolerance=1e-3)
        assert result.after.macs == 2 * 3 * 3
        torch.testing.assert_close(result.model(x), model(x), atol=1e-3, rtol=1e-3)
