"""Which values of a dict of a data loader a model is called with."""

import pytest
import torch
from torch import nn

import layercollapse as lc
from layercollapse.graph.agreement import compare
from layercollapse.graph.export import arguments_in
from layercollapse.pipeline.batches import Inputs, measure_entropy

pytestmark = pytest.mark.usefixtures("seeded")


class Conditional(nn.Module):
    """A class-conditional model, which cannot do without its labels."""

    def __init__(self):
        super().__init__()
        self.embedding, self.first, self.last = nn.Embedding(5, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x, labels):
        return self.last((self.first(x) + self.embedding(labels)).relu())


class Optional(Conditional):
    """Labels change what it gives, or are missing."""

    def forward(self, x, labels=None):
        y = self.first(x)
        return self.last((y if labels is None else y + self.embedding(labels)).relu())


class WithLoss(Conditional):
    """As models of transformers: labels give a loss beside the logits."""

    def forward(self, x, labels=None, **kwargs):
        y = self.last(self.first(x).relu())
        return {"logits": y} if labels is None else {"loss": nn.functional.cross_entropy(y, labels), "logits": y}


def batch():
    return {"x": torch.randn(4, 6), "labels": torch.tensor([0, 1, 2, 1]), "index": 3}


@pytest.mark.parametrize(
    ("kind", "example", "taken"),
    [
        (Conditional, None, {"x", "labels"}),
        (Conditional, {"x": 0, "labels": 0}, {"x", "labels"}),
        (Optional, None, {"x"}),
        (Optional, {"x": 0, "labels": 0}, {"x", "labels"}),
        (Optional, (0, 0), {"x", "labels"}),
        (Optional, {"x": 0}, {"x"}),
        (Optional, (0,), {"x"}),
        (WithLoss, None, {"x", "index"}),
        (WithLoss, {"x": 0}, {"x"}),
        (WithLoss, {"x": 0, "index": 0}, {"x", "index"}),
    ],
)
def test_what_is_taken(kind, example, taken):
    assert arguments_in(batch(), kind(), example).keys() == taken


def test_wrappers_are_looked_through():
    assert arguments_in(batch(), torch.compile(Conditional())).keys() == {"x", "labels"}


@pytest.mark.parametrize(
    ("kind", "keys"),
    [(Conditional, ("x", "labels")), (Optional, ("x", "labels")), (Optional, ("x",)), (WithLoss, ("x",))],
)
@pytest.mark.parametrize("positional", [False, True])
def test_collapse_prune_and_compare(kind, keys, positional):
    model, data = kind().double(), [{**batch(), "x": torch.randn(4, 6).double()} for _ in range(2)]
    nn.init.constant_(model.first.bias, 50.0)  # always on
    example = tuple(data[0][key] for key in keys) if positional else {key: data[0][key] for key in keys}
    inputs = Inputs(data, "data", model, example)
    assert [set(some) for some in inputs] == [set(keys)] * 2
    report = measure_entropy(model, inputs)
    result = lc.collapse(model, example, report, data=data, cost="macs")
    assert result.collapsed == ("forward",)
    assert result.max_abs_error < 1e-11
    assert result.samples == 8
    assert compare(model, result.model, data).max_abs_error < 1e-11
    lc.Pruner(model, example).step(report, amount=0.1, rule="uniform")
