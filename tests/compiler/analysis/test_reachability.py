"""Whether outputs depend on inputs: by the names of layers without weights, and by the weights themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layercollapse.compiler.analysis.reachability import depends
from layercollapse.zoo.models import build
from networks import Model, lowered


def test_without_the_weights_of_some_layers() -> None:
    model = build("resnet18", num_classes=10, in_channels=1, image_size=28, width=8)
    net = lowered(model, torch.zeros(1, 1, 28, 28))
    assert depends(net)
    assert depends(net, [])
    assert depends(net, ["layer1.0.conv1.weight", "layer1.0.conv2.weight"])  # around a block by its identity
    assert depends(net, ["layer2.0.conv1.weight"])  # by its projection
    assert not depends(net, ["layer2.0.conv1.weight", "layer2.0.downsample.0.weight"])
    assert not depends(net, ["conv1.weight"])


class Forked(nn.Module):
    """A layer whose first two channels go one way, and whose last two another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(3, 4), nn.Linear(3, 2), nn.Linear(4, 2)
        self.table = nn.Parameter(torch.ones(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, -1)
        y = torch.cat([torch.sigmoid(a) * self.gate(x), b], -1)
        return torch.einsum("nc,ck->nk", self.last(y), self.table)


def test_channels_are_followed_by_the_weights_that_are_not_zero() -> None:
    model = Forked()
    net = lowered(model, torch.zeros(2, 3))
    with torch.no_grad():
        model.last.weight[:, :2] = 0
        assert depends(net)  # by the last two
        model.last.weight[:, 2:] = 0
        assert not depends(net)
        assert depends(net, [])  # layers still lead there
        nn.init.ones_(model.last.weight)
        nn.init.zeros_(model.table)  # a layer that stays as it is
        assert not depends(net)
    assert not depends(net, ["table"])
    assert depends(net, ["first.weight"])  # by the gate


def test_a_product_depends_on_what_either_factor_depends_on() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.last = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.a(x) * self.b(x))

    model = Gated()
    for layer, channels in ((model.a, [0, 1, 2]), (model.b, [0, 1, 3])):
        layer.weight.data[channels] = 0
    for read, expected in (((0, 1), False), ((0, 2), True), ((1, 3), True)):
        nn.init.zeros_(model.last.weight)
        model.last.weight.data[:, list(read)] = 1
        assert depends(lowered(model, torch.zeros(2, 3))) == expected


def test_outputs_depend_on_the_input_by_a_path_of_weights() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(5, 4)
    model[0].weight.data[:2] = 0
    assert depends(lowered(model, x))
    model[2].weight.data[:, 2] = 0  # reads the two neurons alone that read nothing
    assert not depends(lowered(model, x))
    skip = Model(lambda m, x: m.a(x) + x.sin(), a=nn.Linear(4, 4))
    skip.a.weight.data.zero_()
    assert depends(lowered(skip, x))
    gone = Model(lambda m, x: m.a(x) + m.b(x.relu()), a=nn.Linear(4, 3), b=nn.Linear(4, 3))
    for layer in (gone.a, gone.b):
        layer.weight.data.zero_()
    assert not depends(lowered(gone, x))
