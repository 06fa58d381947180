"""Passes counted at the rectifier modules alone see what those see that are watched call by call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from layercollapse import LayerCollapseError
from layercollapse.entropy.probe import EntropyProbe
from layercollapse.graph.replay import ModuleWatch
from layercollapse.graph.watch import ForwardWatch

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Block(nn.Module):
    """A shared rectifier; tokens, whose channels lie last in the one call and behind the batch in the other."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act, self.last, self.again = nn.Linear(4, 4), nn.ReLU(inplace=True), nn.PReLU(4), 1

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.linear(x))
        for _ in range(self.again):
            x = self.act(x.transpose(1, 2)).transpose(1, 2)
        return self.last(self.linear(x).transpose(1, 2))


@pytest.fixture
def passes(monkeypatch) -> list[bool]:
    """Whether each forward pass was counted at the modules alone."""
    made: list[bool] = []
    for kind in (ModuleWatch, ForwardWatch):

        def begin(self, *args, kind=kind, init=kind.__init__):
            made.append(kind is ModuleWatch)
            init(self, *args)

        monkeypatch.setattr(kind, "__init__", begin)
    return made


def tables(probe: EntropyProbe) -> dict[str, list]:
    return {layer.name: layer.counts.tolist() for layer in probe.report()}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_counts_are_those_of_watched_passes(passes, mode) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Block(), nn.GELU())
    batches = [torch.randn(n, 5, 4) for n in (3, 3, 2, 3)]
    expected: dict[str, Tensor] = {}
    with mode():
        for x in batches:
            with EntropyProbe(model) as probe:  # whose first pass is watched
                model(x)
            for layer in probe.report():
                expected[layer.name] = expected.get(layer.name, 0) + layer.counts
        assert passes == [False] * 4
        with EntropyProbe(model) as probe:
            for x in batches:
                model(x)
    assert passes[4:] == [False, True, True, True]
    assert tables(probe) == {name: counts.tolist() for name, counts in expected.items()}
    assert list(probe.calls()) == ["0.act", "0.act#2", "0.last", "1"]


def test_a_call_more_is_counted_and_learnt(passes) -> None:
    model, x = Block(), torch.randn(3, 5, 4)
    with EntropyProbe(model) as probe:
        model(x)
        model.again = 2
        for _ in range(3):
            model(x)
    assert passes == [False, True, False, True]
    assert {layer.name: layer.samples for layer in probe.report()} == {
        "act": 60, "act#2": 60, "act#3": 45, "last": 60,
    }  # fmt: skip


def test_what_is_not_replayed(passes) -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU6()

        def forward(self, x: Tensor) -> Tensor:
            return x * self.act(x + 3) / 6

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.act(x)

    x = torch.randn(2, 5, 4)
    with EntropyProbe(Written()) as probe:  # one site, which is not the module's
        probe.model(x)
        probe.model(x)
    assert [(layer.name, layer.kind) for layer in probe.report()] == [("forward", "hardswish")]
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    with EntropyProbe(Masked()) as probe:
        probe.model(x)
        probe.model(x, mask)
        probe.keep(mask.bool())
        probe.model(x)
        probe.model(x)
    assert [layer.samples for layer in probe.report()] == [10 + 7 + 7 + 10]

    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Tensor, last=None) -> Tensor:
            x = self.act(x)
            return x if last is None else last(x)

    with EntropyProbe(Given()) as probe:
        probe.model(x)
        probe.model(x, torch.relu)
    assert list(probe.calls()) == ["act", "forward"]
    with EntropyProbe(nn.ReLU(), patterns=True) as probe:
        probe.model(x)
        probe.model(x)
    assert passes == [*[False] * 2, False, False, False, True, *[False] * 2, *[False] * 2]


def test_errors_name_the_site(passes) -> None:
    model = nn.Sequential(nn.ReLU())
    with EntropyProbe(model) as probe:
        model(torch.randn(2, 3))
        with pytest.raises(LayerCollapseError, match=r"site '0': .*got .*int64"):
            model(torch.ones(2, 3, dtype=torch.int64))
        with pytest.raises(LayerCollapseError, match=r"site '0': expected relu with 3 channels as before, got .* 4 "):
            model(torch.randn(2, 4))
        model(torch.randn(2, 3))
        with pytest.raises(LayerCollapseError, match=r"torch\.func"):
            torch.vmap(model)(torch.randn(2, 3))
        model(torch.empty(0, 3))
        model(torch.randn(2, 3))
    assert passes == [False, True, True, True, False, True, True]
    assert probe.report()["0"].samples == 6
