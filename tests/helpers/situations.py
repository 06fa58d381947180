"""What strategies are asked about: a small network, counted, at some point of a run."""

import torch
from torch import nn

import layercollapse as lc
from layercollapse.strategies.base import Situation, Taken


def network():
    """Three rectifiers, two of them behind batch norms, for inputs (N, 4)."""
    return nn.Sequential(
        *(nn.Linear(4, 6), nn.ReLU()),
        *(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU()),
        *(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.ReLU()),
        nn.Linear(5, 3),
    )


def situation(model, x, pruner=None, steps=((0, True),), seed=0):
    """After steps with so many linear sites, each within the budget or not; the best is the last that is."""
    model.eval()
    pruner = lc.Pruner(model, x) if pruner is None else pruner
    with torch.no_grad(), lc.EntropyProbe(model) as probe:
        model(x)
    report = probe.report()
    best = max(number for number, (_, within) in enumerate(steps) if within)
    entropy = {layer.name: layer.mean for layer in report}
    names = [site.name for site in pruner.capture.sites]
    taken = [
        Taken(pruner.linear if n == best else tuple(names[:count]), within, n == best, entropy)
        for n, (count, within) in enumerate(steps)
    ]
    prune = {"amount": 0.5, "rule": "nepenthe", "max_layer_share": 1.0}
    return Situation(report, pruner, model, [x], lambda model: 0.0, taken, prune, seed)
