"""Networks of any depth: no walk over a graph is recursive, and no pass takes time that grows with its square."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from types import CodeType, FrameType

import pytest
import torch
from torch import Tensor, fx, nn

import layercollapse as lc
from layercollapse.compiler.frontend.flattening import flattened
from layercollapse.compiler.frontend.lower import lower
from layercollapse.compiler.ir.channel_map import affine_readers
from layercollapse.compiler.ir.records import Affine

aten = torch.ops.aten


def plain(layers: int) -> nn.Module:
    """Linear layers of which the odd ones have neurons that are always on.

    The neurons of the even ones are x and -x, so that something is left of a number behind thousands of them. The small
    weights are there to be pruned.
    """
    torch.manual_seed(0)
    sizes = [2, *[4] * layers]
    model = nn.Sequential(*(module for a, b in pairwise(sizes) for module in (nn.Linear(a, b), nn.ReLU())))
    model.append(nn.Linear(4, 2))
    for index, layer in enumerate(model[::2]):
        nn.init.uniform_(layer.weight, -1e-4, 1e-4)
        factor = 0.5 if index > 0 and index % 2 == 0 else 1.0
        layer.weight.data[:2, :2] = factor * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        layer.bias.data.fill_(8.0 * (index % 2))
    return model


class Block(nn.Module):
    """x + B relu(A x); where it is on, both are linear."""

    def __init__(self, on: bool) -> None:
        super().__init__()
        self.a, self.act, self.b = nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)
        nn.init.normal_(self.a.weight)
        nn.init.normal_(self.b.weight, std=0.03)
        self.a.bias.data.fill_(100.0 * on)
        self.b.bias.data = -self.b.weight.data.sum(1) * 100.0 * on

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.act(self.a(x)))


def residual(layers: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(Block(on=index % 4 == 3) for index in range(layers // 2)), nn.Linear(2, 2))


class Dense(nn.Module):
    """Every layer reads what all before have made, in concatenations of concatenations."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(2 + index, 1) for index in range(layers))
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, self.act(layer(x))], 1)
        return x


class WrittenOut(nn.Module):
    """Activations written out, behind each other and in sums."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            y = layer(x)
            x = x + y * torch.sigmoid(y) + torch.maximum(-x, torch.zeros_like(x))
        return x


class Pointwise(nn.Module):
    """A flatten whose size is a number, and what works on each value alone before the layer that reads it."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(2, 2, 1), nn.Linear(2, 2)
        self.acts = nn.ModuleList(nn.LeakyReLU(0.9) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x[:, :, None, None]).view(-1, 2)
        for act in self.acts:
            x = act(x)
        return self.last(x)


Make = Callable[[int], nn.Module]
NETWORKS: dict[str, Make] = {
    "plain": plain,
    "residual": residual,
    "dense": Dense,
    "written out": WrittenOut,
    "pointwise": Pointwise,
}
SLOW = {"plain", "dense", "written out"}


def through(model: nn.Module, folder) -> lc.CollapseResult:
    """A network through all that a run does with it; what is loaded computes what the network does."""
    model = model.double().eval()
    torch.manual_seed(1)
    data = torch.randn(64, 2, dtype=torch.float64)

    def measured() -> lc.EntropyReport:
        with lc.EntropyProbe(model) as probe:
            model(data)
        return probe.report()

    pruner = lc.Pruner(model, data[:4])
    pruner.step(measured(), 0.1)
    result = lc.collapse(model, data[:4], measured(), data=[data], cost="macs", captured=pruner.capture)
    result.save(folder)
    expected = model(data).detach()
    assert float(expected.std(0).max()) > 0.1  # something has come through
    torch.testing.assert_close(lc.load(folder)(data), expected, rtol=0, atol=1e-9)
    return result


def nested(call: Callable[[], object]) -> dict[str, int]:
    """The functions of the package that were called in themselves, at any distance -> how often at most."""
    package, active, most = os.path.dirname(lc.__file__), Counter[CodeType](), Counter[CodeType]()

    def count(frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(package):
            active[code] += 1
            most[code] = max(most[code], active[code])
        elif event == "return" and active[code]:
            active[code] -= 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(before)
    return {f"{code.co_filename}:{code.co_firstlineno}": times for code, times in most.items() if times > 1}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long if n in SLOW else ()) for n in NETWORKS])
def test_no_function_is_deeper_in_itself_in_a_deeper_network(name: str, tmp_path) -> None:
    make = NETWORKS[name]
    few, many = (nested(lambda size=size: through(make(size), tmp_path / str(size))) for size in (4, 12))
    assert many.items() <= few.items()


def test_a_flatten_before_thousands_of_calls() -> None:
    graph = fx.Graph()
    images = graph.placeholder("images")
    images.meta["val"] = torch.empty(5, 3, 2, 2)
    view = node = graph.call_function(aten.view.default, (images, [-1, 12]))
    view.meta["val"] = torch.empty(5, 12)
    for _ in range(3000):
        node = graph.call_function(aten.relu.default, (node,))
        node.meta["val"] = view.meta["val"]
    last = graph.call_function(aten.linear.default, (node, graph.placeholder("weight")))
    assert flattened(view) is images
    last.target = aten.sum.default
    assert flattened(view) is None


def test_the_readers_of_thousands_of_concatenations() -> None:
    count = 3000
    net = lower(lc.capture(layer := nn.Linear(count + 1, 1), torch.randn(2, count + 1)), layer)
    ((reader, _),) = net.records(Affine)
    source = whole = reader.args[0]
    with net.graph.inserting_before(reader):
        other = net.graph.placeholder("other")
        other.meta["shape"] = source.meta["shape"] = (2, 1)
        for index in range(1, count + 1):
            whole = net.graph.call_function(aten.cat.default, ([other, whole] if index % 3 == 0 else [whole, other], 1))
            whole.meta["shape"] = (2, index + 1)
    reader.args = (whole,)
    assert affine_readers(net, source, -1) == {reader: [count // 3]}
    net.graph.call_function(aten.relu.default, (whole,))
    assert affine_readers(net, source, -1) is None


@pytest.mark.long
@pytest.mark.parametrize("name", ["plain", "residual"])
def test_two_thousand_layers(name: str, tmp_path) -> None:
    result = through(NETWORKS[name](2000), tmp_path)
    assert result.after.depth < result.before.depth == 2001
