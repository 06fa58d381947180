"""Networks for the tests of the pruner, and what it leaves of them."""

from __future__ import annotations

import copy
import functools
import itertools

import torch
import torch.nn.functional as F
from torch import nn

from layercollapse.entropy.layer import LayerEntropy
from layercollapse.entropy.probe import EntropyProbe
from layercollapse.entropy.report import EntropyReport
from layercollapse.prune.pruner import Pruner


class Residual(nn.Module):
    """Stem, a block with a projection, a block with an identity, and an output layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(8, 5)
        self.conv1, self.conv2, self.skip = (
            nn.Conv2d(4, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(4, 8, 1),
        )
        self.conv3, self.conv4 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.conv2(F.relu(self.conv1(x))) + self.skip(x))
        x = F.relu(self.conv4(F.relu(self.conv3(x))) + x)
        return self.fc(x.mean((2, 3)))


SITES = {
    "forward": ("stem.weight",),
    "forward#2": ("conv1.weight",),
    "forward#3": ("conv2.weight", "skip.weight"),
    "forward#4": ("conv3.weight",),
    "forward#5": ("conv4.weight",),
}


@functools.cache
def _template():
    return Pruner(Residual(), image())


def residual(device="cpu"):
    """A pruner and its model; the capture, which takes a second, is made once."""
    pruner = copy.deepcopy(_template())
    pruner.model.to(device)
    return pruner.model, pruner


def chain(*widths):
    layers = []
    for i, o in itertools.pairwise(widths):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def measure(model, *inputs):
    with torch.no_grad(), EntropyProbe(model) as probe:
        model(*inputs)
    return probe.report()


def image(device="cpu"):
    return torch.randn(6, 3, 8, 8, device=device)


def report_with(model, x, **positive):
    """A report of the model's sites with chosen shares of positive values, of 100."""
    rows = lambda layer: [[100 - positive.get(layer.name, 50), 0, positive.get(layer.name, 50), 0]] * layer.neurons  # noqa: E731
    return EntropyReport(
        [LayerEntropy(x.name, x.kind, torch.tensor(rows(x), dtype=torch.int64)) for x in measure(model, x)]
    )


def snapshot(model, pruner):
    return {k: v.clone() for k, v in model.state_dict().items()}, {k: v.clone() for k, v in pruner.state_dict().items()}


def same(a, b):
    return all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True))


def zeros_hold(pruner):
    weights = dict(pruner.model.named_parameters())
    return all((weights[name][~mask] == 0).all() for name, mask in pruner.masks().items())


def crossed() -> nn.Module:
    """Half of the weights can go so that every layer keeps some and no path is left."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    model[0].weight.data = torch.tensor([[5.0, 5.0], [0.1, 0.1]])
    model[2].weight.data = torch.tensor([[0.1, 5.0], [0.1, 5.0]])
    for layer in (model[0], model[2]):
        layer.bias.data.fill_(0.5)
    return model


def dying(layers=4, norm=False, bias=-0.05):
    """Paths of weights lead through it when few are left, through neurons that are off then."""
    made = []
    for i, o in itertools.pairwise([4] + [12] * layers):
        made += [nn.Linear(i, o), *([nn.BatchNorm1d(o)] if norm else []), nn.ReLU()]
        linear = made[-3 if norm else -2]
        nn.init.kaiming_normal_(linear.weight)
        nn.init.constant_(linear.bias, bias)
    return nn.Sequential(*made, nn.Linear(12, 3))


def misled():
    """For positive inputs, the large weights make a neuron that is always off, the small ones one that is on."""
    model, x = chain(2, 2, 1), 0.5 + torch.rand(8, 2)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-9.0, -9.0], [1.0, 1.0]]))
        model[0].bias.zero_()
    return model, x


def spread(model, x):
    with torch.no_grad():
        y = model.eval()(x)
    return float((y.amax(0) - y.amin(0)).max())
