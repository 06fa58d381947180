"""Whose memory outputs are: an input's, the model's, one another's, or their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layercollapse.graph.memory import Memory, output_memory


class Holds(nn.Module):
    def __init__(self, function: Callable[[Holds, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(2, 3))
        self.register_buffer("table", torch.ones(3))
        self.plain = torch.ones(4)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


NEW = Memory()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda m, x: x + 1, [NEW]),
        (lambda m, x: x, [Memory(of_input=True)]),
        (lambda m, x: x.t()[1:], [Memory(of_input=True)]),
        (lambda m, x: m.weight, [Memory(of_model=True)]),
        (lambda m, x: {"b": m.table[None], "a": m.plain}, [Memory(of_model=True), Memory(of_model=True)]),
        (lambda m, x: m.table.expand(2, 3), [Memory(of_model=True, overlaps=True)]),
        (lambda m, x: x.sum(0).expand(5, 3), [Memory(overlaps=True)]),
        (lambda m, x: (y := x + 1, y.t(), x + 1), [Memory(others=frozenset({1})), Memory(others=frozenset({0})), NEW]),
        (lambda m, x: [x.sum(0), 3, None], [NEW, NEW, NEW]),
        (lambda m, x: (y := x.new_zeros(0, 3), y[:0]), [NEW, NEW]),  # nothing lies there
        (lambda m, x: x.to_sparse(), [NEW]),
    ],
)
def test_whose_memory(function: Callable, expected: list[Memory]) -> None:
    model, x = Holds(function), torch.randn(2, 3)
    with torch.no_grad():
        assert list(output_memory(model, ((x,), {}), model(x))) == expected


def test_what_a_call_has_kept_is_the_models() -> None:
    def keep(m: Holds, x: Tensor) -> Tensor:
        m.plain = x * 2
        return m.plain[0]

    model, x = Holds(keep), torch.randn(2, 3)
    assert output_memory(model, {"x": x}, model(x)) == (Memory(of_model=True),)
