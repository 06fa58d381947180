"""The layers and rectifiers of a network in words and numbers, by hand."""

from __future__ import annotations

import torch
from torch import nn

import layercollapse as lc
from layercollapse.compiler.analysis.outline import Part, outline
from networks import Model, lowered


def test_every_layer_and_rectifier_in_order() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),  # (4, 5, 5)
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, (1, 3), dilation=2, groups=4),  # (4, 5, 1)
        nn.Conv2d(4, 6, 1, groups=2),
        nn.ConvTranspose2d(6, 3, 2),  # from 5 positions
        nn.Flatten(),
        nn.LeakyReLU(),
        nn.Linear(36, 5),
    )
    assert outline(lowered(model, torch.randn(3, 2, 9, 9))) == (
        Part("0", "3x3, 2 → 4, stride 2", 72, 72 * 25),
        Part("2", "relu"),
        Part("3", "1x3, 4 → 4, dilation 2, depthwise", 12, 12 * 5),
        Part("4", "1x1, 4 → 6, 2 groups", 12, 12 * 5),
        Part("5", "2x2, 6 → 3, transposed", 72, 72 * 5),
        Part("7", "leaky_relu"),
        Part("8", "36 → 5", 180, 180),
    )


def test_what_a_collapse_says_of_both_networks() -> None:
    model = Model(lambda m, x: m.c(torch.relu(m.b(torch.relu(m.a(x))))), **{k: nn.Linear(4, 4) for k in "abc"})
    x = torch.randn(6, 4)
    lc.linearize(model, {"forward": "identity"}, x)
    result = lc.collapse(model, x, cost="macs")
    layer = Part("a", "4 → 4", 16, 16)
    assert [part.name for part in result.parts_before] == ["a", "forward", "b", "forward#2", "c"]
    assert [part.what for part in result.parts_before if part.rectifier] == ["linear", "relu"]
    assert result.parts_before[0] == layer
    assert [part.rectifier for part in result.parts_after] == [False, True, False]
    assert result.parts_after[1] == Part("forward#2", "relu")
