"""The boxes of a network, what each reads, and its linear regions: by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import layercollapse as lc
from layercollapse.compiler.analysis.chart import Box, chart, regions
from layercollapse.compiler.frontend.lower import lower

pytestmark = pytest.mark.usefixtures("seeded")


def of(model: nn.Module, example: object) -> tuple[Box, ...]:
    captured = lc.capture(model.eval(), example)
    return chart(lower(captured, model), {s.node: s.name for s in captured.sites if s.kind == "linear"})


def rows(boxes: tuple[Box, ...]) -> list[tuple[str, str, tuple[int, ...], int | None]]:
    return [(box.kind, box.name, box.reads, box.region) for box in boxes]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.relu = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.up, self.down, self.skip = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x)))
        x = self.relu(self.down(self.relu(self.up(x))) + self.skip(x))
        return self.head(x.mean((2, 3))).softmax(-1)


def test_a_residual_block() -> None:
    boxes = of(Residual(), torch.randn(2, 1, 8, 8))
    assert rows(boxes) == [
        ("input", "x", (), None),
        ("layer", "first", (0,), 1),
        ("rectifier", "relu", (1,), None),
        ("layer", "up", (2,), 2),
        ("rectifier", "relu#2", (3,), None),
        ("layer", "down", (4,), 3),
        ("layer", "skip", (2,), 3),
        ("join", "sum", (5, 6), 3),
        ("rectifier", "relu#3", (7,), None),
        ("layer", "head", (8,), 4),
        ("operation", "softmax", (9,), None),
        ("output", "output", (10,), None),
    ]
    assert (boxes[1].what, boxes[1].weights, boxes[1].macs) == ("3x3, 1 → 4", 36, 36 * 6 * 6)
    found = regions(boxes)
    assert found[3].layers == ("down", "skip")
    assert found[3].macs == (8 * 4 + 4 * 4) * 36
    assert (found[3].reads, found[3].read_by) == (("relu", "relu#2"), ("relu#3",))


def test_a_site_made_linear_joins_what_is_around_it() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.ReLU()), torch.randn(2, 4)
    lc.linearize(model, {"1": "identity"}, x)
    boxes = of(model, x)
    assert [(box.name, box.what, box.region) for box in boxes[1:5]] == [
        ("0", "4 → 8", 1),
        ("1", "linear", 1),
        ("2", "8 → 3", 1),
        ("3", "relu", None),
    ]
    assert regions(boxes)[1].layers == ("0", "2")


class Gate(nn.Module):
    """A tensor that two read ends a region; numbers scale, tensors that multiply each other bend."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = 2 * self.a(x) / 3
        z = self.b(y) * y
        return self.c(z * z) + 1 / z


def test_products_and_branches() -> None:
    boxes = of(Gate(), torch.randn(2, 4))
    assert [(box.kind, box.name, box.region) for box in boxes] == [
        ("input", "x", None),
        ("layer", "a", 1),
        ("layer", "b", 2),
        ("operation", "mul", None),
        ("operation", "mul", None),
        ("layer", "c", 3),
        ("operation", boxes[6].name, None),
        ("join", "sum", 3),
        ("output", "output", None),
    ]
    assert boxes[6].reads == (3,)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        weight = (mask > 0).float() / mask.sum(1, keepdim=True)
        return self.head((self.words(ids) * weight[..., None]).sum(1))


def test_masks_are_not_shown() -> None:
    ids = torch.ones(2, 5, dtype=torch.long)
    names = [box.name for box in of(Masked(), (ids, ids.clone()))]
    assert names == ["ids", "mask", "embedding", "mul", "sum", "head", "output"]
