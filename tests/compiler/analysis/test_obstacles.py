"""What stands between two layers without a rectifier between them, and how many of these are said."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layercollapse.compiler.analysis.obstacles import Kept, grouped, obstacles, sequences
from networks import Model, lowered


def two(function) -> dict[tuple[str, str], str]:
    return obstacles(lowered(Model(function, a=nn.Linear(4, 4), b=nn.Linear(4, 4)), torch.randn(3, 4)))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, x: m.b(torch.softmax(m.a(x), -1)), "between them: softmax"),
        (lambda m, x: m.b(torch.tanh(torch.tanh(m.a(x)).abs())), "between them: tanh, abs"),
        (lambda m, x: m.b(m.a(x) + x), "between them: a sum; one layer would be more work, or differ at the border"),
        (
            lambda m, x: (y := m.a(x), m.b(y + x))[1] + y,
            "between them: a sum; it, or the first layer, is read",
        ),
        (lambda m, x: (y := m.a(x), m.b(y) + torch.tanh(y))[1], "the first is also read by tanh"),
        (lambda m, x: (y := m.a(x), m.b(y) + y)[1], "the first is also read by a sum"),
    ],
)
def test_what_stands_between(function, reason: str) -> None:
    found = two(function)
    assert list(found) == [("a", "b")]
    assert found["a", "b"].startswith(reason)


@pytest.mark.parametrize(
    ("sizes", "padding", "repad", "work"),
    [
        (((3, 2, 1), (2, 3, 1)), 0, False, 9 / 12),
        (((3, 1, 3), (1, 3, 3)), 1, False, None),
        # 5 x 5 in place of two of 3 x 3, with one channel between three.
        (((3, 1, 3), (1, 3, 3)), 1, True, 9 * 25 / (2 * 3 * 9)),
    ],
)
def test_what_one_layer_in_place_of_two_would_be(sizes, padding: int, repad: bool, work: float | None) -> None:
    layers = (nn.Conv2d(*size, padding=padding, bias=False) for size in sizes)
    (two,) = sequences(lowered(nn.Sequential(*layers), torch.randn(1, 3, 7, 7)), repad)
    assert (two.first.target, two.second.target) == ("0", "1")
    assert two.work == pytest.approx(work)
    assert two.reason.startswith("no single layer is exact" if work is None else f"merged they need {work:.1f} times")


def test_what_follows_and_is_no_sequence() -> None:
    ab = {name: nn.Linear(4, 4) for name in ("a", "b")}
    for function in (lambda m, x: m.b(torch.relu(m.a(x))), lambda m, x: (y := m.a(x), m.b(y) + y)[1]):
        assert not list(sequences(lowered(Model(function, **ab), torch.randn(3, 4)), False))


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.b(torch.relu(m.a(x))),  # of this the site says why it stays
        lambda m, x: m.b(m.a(x)),  # weighed by the pass that merges
        lambda m, x: m.b(torch.zeros_like(m.a(x))),  # reads the size alone
        lambda m, x: m.b(m.a(x) + x + x.tanh()),  # behind two sums every layer reads every other
        lambda m, x: m.a(x) + m.b(x),
    ],
)
def test_what_is_no_pair(function) -> None:
    assert two(function) == {}


def test_a_reason_of_many_is_said_once() -> None:
    pairs = [Kept((f"a{i}", f"b{i}"), "the border") for i in range(6)]
    alone = Kept(("c",), "the border")
    other = Kept(("d", "e"), "more work")
    assert grouped([*pairs[:3], alone, other, *pairs[3:]]) == [
        "a0 → b0, a1 → b1, a2 → b2 and 3 more pairs: kept in sequence: the border",
        "c: the border",
        "d → e: kept in sequence: more work",
    ]
    assert grouped(pairs[:4]) == ["a0 → b0, a1 → b1, a2 → b2 and 1 more pair: kept in sequence: the border"]
    assert grouped([]) == []
