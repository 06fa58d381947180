"""Rectifier calls whose results nothing reads, which a graph does not have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import layercollapse as lc


class Idle(nn.Module):
    """Two rectifiers in one forward pass, and one or two more whose results nothing reads."""

    def __init__(self, idle: int, other: bool = False) -> None:
        super().__init__()
        self.first, self.idle, self.last = nn.Linear(4, 6), nn.Linear(4, idle), nn.Linear(6, 6)
        self.act, self.other = nn.ReLU(), other

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.act(self.idle(x)) if self.other else torch.relu(self.idle(x))
        return torch.relu(self.last(torch.relu(self.first(x))))


@pytest.mark.parametrize(
    ("model", "sites", "unread"),
    [
        (Idle(3), ["forward#2", "forward#3"], {"forward"}),  # told by the channels
        (Idle(6), ["forward", "forward#2"], {"forward", "forward#2", "forward#3"}),  # cannot be told
        (Idle(6, other=True), ["forward", "forward#2"], {"act"}),
    ],
)
def test_calls_whose_result_nothing_reads_do_not_shift_the_others(model, sites, unread) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 4)
    nn.init.constant_(model.last.bias, 50.0)  # on, and no other is
    captured = lc.capture(model, x)
    assert [site.name for site in captured.sites] == sites
    assert captured.unread == unread
    with lc.EntropyProbe(model) as probe, torch.no_grad():
        model(x)
    report = probe.report()
    result = lc.collapse(model, x, report, data=[x])
    told = sites[1] not in unread
    assert result.collapsed == ((sites[1],) if told else ())
    assert ("cannot be told" in result.explain()) != told
    lc.Pruner(model, x).step(report, amount=0.5)
