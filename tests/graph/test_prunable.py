"""Which weights the pruner may take, and why a site has none."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layercollapse as lc
from layercollapse.graph.prunable import prunable


class Unfed(nn.Module):
    """Sites with nothing to prune, each for a reason of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head, self.table = nn.Linear(6, 8), nn.Linear(6, 6), nn.Embedding(9, 6)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        a = x.relu()
        b = (a + 1).relu()
        y = self.layer(b)
        c, d = y.relu(), (-y).relu()
        e = self.table(index).relu()
        f = torch.special.bessel_j0(self.head(c[..., :6] + d[..., :6])).relu()
        return self.head(self.normed(e + f).relu())


def test_a_site_without_weights_has_a_reason() -> None:
    torch.manual_seed(0)
    model, inputs = Unfed(), (torch.randn(4, 6), torch.randint(9, (4,)))
    unfed = lc.Pruner(model, inputs).unfed
    assert unfed == {
        "forward": "it reads the model's input x",
        "forward#2": "it reads another rectifier",
        "forward#4": "layer.weight is pruned with forward#3",
        "forward#5": "it reads a table of rows (embedding)",
        "forward#6": "it reads special_bessel_j0, which is not followed",
        "forward#7": "it reads a layer that computes its weight in the forward pass (normed)",
    }
    result = lc.collapse(model, inputs, cost="macs")
    assert result.unfed == unfed
    assert (
        "nothing to prune before forward#7: it reads a layer that computes its weight in the forward pass (normed)"
        in result.explain().splitlines()
    )


def test_ignored_weights_and_output_layers_are_reasons() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[4].weight
    targets = prunable(model, lc.capture(model, torch.randn(2, 4)), ignore="0")
    assert targets.unfed == {"1": "0.weight is ignored", "3": "2.weight is an output layer"}
    with pytest.raises(lc.LayerCollapseError, match=r"got none in 2 sites; 1: 0.weight is ignored; 3: 2.weight is an"):
        lc.Pruner(model, torch.randn(2, 4), ignore="0")


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5), self.bias)


def test_the_advice_for_computed_weights_is_one_that_applies() -> None:
    def message(layer: nn.Module) -> str:
        model = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 2))
        with pytest.raises(lc.LayerCollapseError, match="1: it reads a layer that computes its weight") as error:
            lc.Pruner(model, torch.randn(2, 3, 5, 5))
        return str(error.value)

    assert "an ordinary layer in its place" in message(Standardized(3, 4, 3))
    assert "remove_parametrizations" in message(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)))
    assert "prune.remove" in message(nn.utils.prune.l1_unstructured(nn.Conv2d(3, 4, 3), "weight", 0.5))
