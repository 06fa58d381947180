"""Bounds behind what moves, joins or selects elements: per channel where these can be followed, else one for all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layercollapse as lc
from layercollapse.compiler.analysis.bounds.interval import Interval
from layercollapse.compiler.analysis.bounds.propagate import bounds
from layercollapse.compiler.frontend.lower import lower

# Of every channel: it lies from its number to its number and a half.
LOW = torch.arange(6.0)


class Moved(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def last(model: nn.Module, x: Tensor) -> Interval | None:
    capture = lc.capture(model, x)
    net = lower(capture, model)
    output = next(node for node in net.graph.nodes if node.op == "output")
    return bounds(net, {capture.inputs[0]: (LOW, LOW + 0.5)}).get(output.args[0][0])


# A function of a map (N, 6, 4, 8); the lowest values of what it gives, of the shape of its bounds, or one for all.
MAPS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor | float]] = {
    "flatten": (lambda x: x.flatten(1), LOW.repeat_interleave(32).reshape(1, 192)),
    "tokens": (lambda x: x.flatten(2).transpose(1, 2), LOW.reshape(1, 1, 6)),
    "heads": (lambda x: x.flatten(2).transpose(1, 2).unflatten(-1, (2, 3)), LOW.reshape(1, 1, 2, 3)),
    "heads and back": (
        lambda x: x.flatten(2).transpose(1, 2).unflatten(-1, (2, 3)).transpose(1, 2).transpose(1, 2).flatten(2),
        LOW.reshape(1, 1, 6),
    ),
    "windows": (
        lambda x: x.permute(0, 2, 3, 1).reshape(-1, 2, 2, 4, 2, 6).transpose(2, 3).reshape(-1, 4, 6),
        LOW.reshape(1, 1, 6),
    ),
    "channels last": (lambda x: x.movedim(1, -1), LOW.reshape(1, 1, 1, 6)),
    "one channel": (lambda x: x[:, 4], torch.tensor(4.0).reshape(1, 1, 1)),
    "some channels": (lambda x: x[:, 1:5:2], torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1)),
    "split": (lambda x: x.split((4, 2), 1)[1], LOW[4:].reshape(1, 2, 1, 1)),
    "unbind": (lambda x: x.unbind(1)[3], torch.tensor(3.0).reshape(1, 1, 1)),
    "chunks, joined": (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), LOW.roll(3).reshape(1, 6, 1, 1)),
    "roll of the map": (lambda x: x.roll((1, 2), (2, 3)), LOW.reshape(1, 6, 1, 1)),
    "roll of the channels": (lambda x: x.roll((1, 2, 1), (1, 3, 3)), 0.0),
    "flip of the map": (lambda x: x.flip((2, 3)), LOW.reshape(1, 6, 1, 1)),
    "flip of the channels": (lambda x: x.flip(1), 0.0),
    "zeros around": (lambda x: F.pad(x, (1, 1, 2, 0)), torch.zeros(1, 6, 1, 1)),
    "another channel": (lambda x: F.pad(x, (0, 0, 0, 0, 0, 1), value=-2.0), -2.0),
    "filled": (lambda x: x.masked_fill(x > 2, 1.5), LOW.clamp(max=1.5).reshape(1, 6, 1, 1)),
    "mean": (lambda x: x.mean((2, 3)), LOW.reshape(1, 6)),
    "mean of the channels": (lambda x: x.mean(1), torch.zeros(1, 1, 1)),
    "largest": (lambda x: x.amax(2), LOW.reshape(1, 6, 1)),
    "gathered": (lambda x: x[:, torch.tensor([2, 2, 5])], 0.0),
    "mixed": (lambda x: x.reshape(-1, 4, 6, 8), 0.0),
    "half": (lambda x: x.to(torch.bfloat16).float(), LOW.reshape(1, 6, 1, 1)),
}


@pytest.mark.parametrize("name", MAPS)
def test_where_the_channels_of_a_map_go(name: str) -> None:
    function, low = MAPS[name]
    model, x = Moved(function), LOW.reshape(1, 6, 1, 1) + 0.5 * torch.rand(64, 6, 4, 8)
    x[0], x[1] = LOW.reshape(6, 1, 1), LOW.reshape(6, 1, 1) + 0.5
    found, y = last(model, x[:2]), model(x).double()
    assert found is not None
    assert bool(((y >= found.low) & (y <= found.high)).all())
    low = torch.as_tensor(low).double()
    if low.ndim:
        assert found.low.shape == low.shape
    torch.testing.assert_close(found.low, low.expand_as(found.low), atol=0.05, rtol=0)


class Token(nn.Module):
    """A token of the model before those of a map; all of them, or the first."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first, self.token = first, nn.Parameter(torch.full((1, 1, 6), 9.0))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1)
        return y[:, 0] if self.first else y


def test_a_token_before_the_others_keeps_its_own_bounds() -> None:
    x = LOW.reshape(1, 6, 1, 1).expand(2, 6, 4, 8)
    every, first = last(Token(False), x), last(Token(True), x)
    assert every is not None
    assert first is not None
    assert first.low.flatten().tolist() == first.high.flatten().tolist() == [9.0] * 6
    assert every.along(-1, 6).low.tolist() == LOW.tolist()
    assert every.along(-1, 6).high.tolist() == [9.0] * 6
