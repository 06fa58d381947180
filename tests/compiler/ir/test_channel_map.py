"""Where operations put channels: checked against the operations themselves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from layercollapse.compiler.ir.channel_map import carry

CASES = [
    ((2, 3, 4, 6), 1, lambda x: F.max_pool2d(x, 2, 1, 1), (1, 1)),
    ((2, 3, 4, 6), 1, lambda x: F.avg_pool2d(x, 2), (1, 1)),
    ((2, 3, 4, 6), 1, lambda x: F.avg_pool2d(x, 3, 1, 1), None),
    ((2, 3, 4, 6), 1, lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), (1, 1)),
    ((2, 3, 4, 6), 1, lambda x: F.avg_pool2d(x, 2, divisor_override=3), None),
    ((2, 3, 4, 6), 1, lambda x: F.adaptive_avg_pool2d(x, 1), (1, 1)),
    ((2, 3, 4, 6), -1, lambda x: F.adaptive_avg_pool2d(x, 1), None),
    ((2, 3, 4, 6), 1, lambda x: x.mean((2, 3)), (-1, 1)),
    ((2, 3, 4, 6), 1, lambda x: x.mean((2, 3), keepdim=True), (1, 1)),
    ((2, 3, 4, 6), 1, lambda x: x.mean((1, 2)), None),
    ((2, 3, 4, 6), -1, lambda x: x.mean((1, 2)), (-1, 1)),
    ((2, 3, 4, 6), 1, lambda x: x.mean((0,)), None),
    ((2, 3, 4, 6), 1, lambda x: torch.flatten(x, 1), (-1, 24)),
    ((2, 3, 4, 6), 1, lambda x: torch.flatten(x, 2), (1, 1)),
    ((2, 3, 4, 6), -1, lambda x: torch.flatten(x, 1, 2), (-1, 1)),
    ((2, 3, 4, 6), 1, lambda x: torch.flatten(x, 1, 2), None),
    ((2, 3, 4, 6), 1, torch.flatten, None),
    ((2, 3, 4, 6), 1, lambda x: x.permute(0, 2, 3, 1), (-1, 1)),
    ((2, 3, 4, 6), -1, lambda x: x.permute(0, 3, 1, 2), (1, 1)),
    ((2, 3, 4, 6), 1, lambda x: x.permute(0, 2, 1, 3), None),
    ((2, 3, 4, 6), 1, lambda x: x.permute(1, 0, 2, 3), None),
    ((2, 3, 4), 1, lambda x: x.transpose(1, 2), (-1, 1)),
    ((2, 3, 4), -1, lambda x: x.transpose(1, 2), (1, 1)),
    ((2, 3, 4), -1, lambda x: x[:, 0], (-1, 1)),
    ((2, 3, 4), 1, lambda x: x[:, :, 0], (-1, 1)),
    ((2, 3, 4), 1, lambda x: x[:, :2], None),
    ((2, 3, 4), 1, lambda x: x[:, :, 1:], (1, 1)),
    ((2, 3, 4), -1, lambda x: x.view(-1, 4), (-1, 1)),
    ((2, 3, 4), -1, lambda x: x.view(-1, 12), None),
    ((6, 4), -1, lambda x: x.view(2, 3, 4), (-1, 1)),
    ((2, 3, 4), 1, lambda x: x.contiguous(), (1, 1)),
    ((2, 3, 4, 6), 1, lambda x: x.mean(2), (1, 1)),
    ((2, 3, 4, 6), 1, lambda x: x.view(2, 3, -1), (1, 1)),
    ((2, 3, 4, 6), 1, lambda x: x.view(2, 4, 3, 6), None),
    ((2, 3, 1, 6), 1, lambda x: x.squeeze(2), (1, 1)),
    ((2, 3, 1, 1), 1, lambda x: x.squeeze(3).squeeze(2), (-1, 1)),
    ((2, 3), -1, lambda x: x.unsqueeze(2), (1, 1)),
    ((2, 3), -1, lambda x: x.unsqueeze(1), (-1, 1)),
    ((2, 3, 3), 1, lambda x: x.transpose(1, 2), (-1, 1)),
    ((2, 3, 4), -1, lambda x: x.transpose(0, 1), None),
    ((2, 3, 4, 6), 1, lambda x: x.roll((1, 2), (2, -1)), (1, 1)),
    ((2, 3, 4), -1, lambda x: x.roll(1, 1), (-1, 1)),
    ((2, 3, 4), -1, lambda x: x.roll((1, 1), (1, 2)), None),
    ((2, 3, 4), -1, lambda x: x.roll(1), None),
    ((2, 3, 4, 6), 1, lambda x: x.flip(-1), (1, 1)),
    ((2, 3, 4, 6), 1, lambda x: x.flip((1, 2)), None),
]


class Wrapped(torch.nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x + 0.0)


@pytest.mark.parametrize(("shape", "dim", "function", "expected"), CASES)
def test_carry(shape: tuple[int, ...], dim: int, function, expected: tuple[int, int] | None) -> None:
    graph = torch.export.export(Wrapped(function), (torch.zeros(shape),)).graph
    for node in graph.nodes:
        value = node.meta.get("val")
        node.meta["shape"] = tuple(value.shape) if isinstance(value, torch.Tensor) else None
    place: tuple[int, int] | None = (dim, 1)
    for node in [node for node in graph.nodes if node.op == "call_function"][1:]:
        if "slice" in str(node.target) and node.args[0].meta["shape"] == node.meta["shape"]:
            continue  # x[:, 0] begins with slices that take everything, also of the channels
        moved = carry(node, place[0]) if place is not None else None
        place = None if moved is None or place is None else (moved[0], moved[1] * place[1])
    assert place == expected
    if expected is None:
        return
    # A tensor that holds one value per channel must come out as carry says.
    channels = shape[dim]
    view = [1] * len(shape)
    view[dim] = channels
    y = function(torch.arange(1.0, channels + 1).view(view).expand(shape).contiguous())
    values = torch.arange(1.0, channels + 1).repeat_interleave(expected[1])
    view = [1] * y.ndim
    view[expected[0]] = len(values)
    torch.testing.assert_close(y, values.view(view).expand_as(y))
