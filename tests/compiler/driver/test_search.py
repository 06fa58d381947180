"""Which sites go together, and which are tried one by one because the outputs differ."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

import layercollapse as lc
from layercollapse.compiler.driver import search
from layercollapse.graph import agreement as verify
from networks import report_on


def test_data_based_collapse_that_fails_on_other_data_is_rolled_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].bias.data.fill_(3.0)
    near = 0.1 * torch.randn(64, 4)
    report = report_on(model, near)
    assert report["1"].collapsible
    result = lc.collapse(model, near, report, data=[100 * near])
    assert result.collapsed == ()
    assert result.max_abs_error < 1e-4
    assert "the outputs differ by" in result.explain()


def test_sites_tried_one_by_one_leave_no_model_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 8), nn.ReLU()] + [layer for _ in range(5) for layer in (nn.Linear(8, 8), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(8, 2))
    x = torch.randn(64, 4)
    report = report_on(model, x)
    counts = [torch.zeros_like(layer.counts) for layer in report]
    for count, layer in zip(counts, report, strict=True):
        count[:, 2] = layer.counts.sum(1)  # as if every neuron had been on
    report = lc.EntropyReport([replace(layer, counts=count) for layer, count in zip(report, counts, strict=True)])
    alive: weakref.WeakSet[nn.Module] = weakref.WeakSet()
    most = 0

    def noted(model: nn.Module, other: nn.Module, data: object) -> verify.Agreement:
        nonlocal most
        alive.add(other)
        most = max(most, len(alive))
        return verify.compare(model, other, data)

    monkeypatch.setattr(search, "compare", noted)
    gc.disable()
    try:
        result = lc.collapse(model, x, report, data=[x], tolerance=1e-3, cost="macs")
    finally:
        gc.enable()
    assert len(result.collapsed) < 6
    assert most <= 2
