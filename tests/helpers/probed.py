"""What a probe should see: counted by hand, and named as in the captured graph."""

import torch
from torch import nn

from layercollapse.entropy.layer import LayerEntropy
from layercollapse.entropy.probe import EntropyProbe
from layercollapse.graph.capture import capture


def brute(x, dim, lower, upper):
    rows = x.movedim(dim, 0).reshape(x.shape[dim], -1).double()
    columns = [rows < lower, rows == lower, rows > lower, rows.isnan()] + ([rows >= upper] if upper else [])
    return torch.stack([column.sum(1) for column in columns], 1).cpu()


def same_names(model, *inputs):
    with torch.no_grad(), EntropyProbe(model) as probe:
        model(*inputs)
    ours = [(layer.name, layer.kind, layer.neurons) for layer in probe.report()]
    assert ours == [(site.name, site.kind, site.channels) for site in capture(model, inputs).sites]
    return [name for name, _, _ in ours]


def two_sites():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.ReLU6()))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.act = nn.Linear(3, 3), nn.ReLU()
        self.again = self.act

    def forward(self, x):
        return self.act(self.linear(self.again(self.linear(x))))


def layer(rows, name="relu", kind="relu", **conventions):
    return LayerEntropy(name, kind, torch.tensor(rows, dtype=torch.int64), **conventions)
