"""What is said of a network before anything is trained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import layercollapse as lc
from layercollapse import LayerCollapseError
from layercollapse.zoo.models import sources

pytestmark = pytest.mark.usefixtures("seeded")


def block(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), *layers)


def test_the_whole_of_a_small_network() -> None:
    model = block(nn.ReLU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = lc.inspect(model, torch.randn(3, 4))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    first, second = seen.sites
    assert (first.name, first.kind, first.neurons, first.feeding, first.notes) == ("1", "relu", 8, ("0",), ())
    assert second.notes == ("gelu is not piecewise linear: without it the outputs are approximate",)
    # Layers of 4 x 8, 8 x 8 and 8 x 2; without the first rectifier 4 x 8 and 8 x 2; without both 4 x 2.
    assert (seen.macs, seen.most, seen.depth, seen.least) == (112, 104, 3, 1)
    lines = seen.table().splitlines()
    assert lines[0] == "2 rectifier sites, 3 layers, 3 linear regions; depth 3, 112 multiply-accumulates a sample"
    assert lines[1].startswith("without any rectifier: depth 1, 8 multiply-accumulates at least (92.9 % saved)")
    rows = [line.split() for line in lines if line.startswith(("1  ", "3  "))][:2]
    assert rows[0] == ["1", "relu", "8", "0", "57.1", "%", "–", "57.1", "%"]
    assert rows[1][-2:] == ["92.9", "%"]
    assert lines[-1] == "3: gelu is not piecewise linear: without it the outputs are approximate"


def test_a_capture_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = block(nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    captured = lc.capture(model, x)
    monkeypatch.setattr("layercollapse.graph.capture.export_reading", None)
    assert lc.inspect(model, x, captured=captured).macs == 48
    with pytest.raises(LayerCollapseError, match="captured: expected a capture of this model"):
        lc.inspect(block(nn.Linear(8, 2)), x, captured=captured)


def test_without_a_rectifier() -> None:
    seen = lc.inspect(nn.Linear(4, 2), torch.randn(2, 4))
    assert seen.sites == ()
    assert seen.table().splitlines() == [
        "0 rectifier sites, 1 layer, 1 linear region; depth 1, 8 multiply-accumulates a sample",
        "no rectifier: there is nothing to collapse",
    ]
    for text in (seen.to_svg(), seen.to_mermaid()):
        assert "4 → 2" in text


class Odd(nn.Module):
    """A layer called twice, a rectifier with nothing before it, one on vectors, and one whose result nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.relu, self.idle = nn.Linear(4, 4), nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        self.idle(x + 1)
        y = self.relu(x)
        y = self.relu(self.layer(y))
        y = self.layer(y)
        return self.relu(y.mean(1))


def test_what_cannot_go_says_why() -> None:
    seen = lc.inspect(Odd(), torch.randn(2, 4))
    notes = {site.name: " / ".join(site.notes) for site in seen.sites}
    assert "nothing to prune before it" in notes["relu"]
    assert "layer is called more than once" in notes["relu#2"]
    assert "it has no dimension of neurons" in notes["relu#3"]
    assert seen.sites[2].saving is None
    assert seen.notes == ("idle: nothing that the outputs need reads it",)
    assert "idle: nothing that the outputs need reads it" in seen.table()


def test_sites_that_are_linear_already() -> None:
    model, x = block(nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    lc.linearize(model, {"1": "identity"}, x)
    (site,) = lc.inspect(model, x).sites
    assert (site.kind, site.saving) == ("linear", None)
    assert "made linear" in site.notes[0]


def test_what_the_outputs_would_not_depend_on() -> None:
    seen = lc.inspect(nn.ReLU(), torch.randn(2, 4))
    assert [(site.saving.identity, site.saving.constant) for site in seen.sites] == [(0, None)]
    assert "linear regions" not in seen.table().partition("\n")[2]


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (nn.Linear(4, 2), torch.randn(2, 5), "example_inputs: the model must run on them"),
        (nn.Linear(4, 2), torch.randn(0, 4), "example_inputs: expected at least one sample"),
        (nn.Linear(4, 2), "x", "example_inputs: expected a tensor"),
    ],
)
def test_bad_input(model: nn.Module, example: object, message: str) -> None:
    with pytest.raises(LayerCollapseError, match=message):
        lc.inspect(model, example)


def test_weights_that_are_no_numbers() -> None:
    model = nn.Linear(4, 2)
    nn.init.constant_(model.weight, float("nan"))
    with pytest.raises(LayerCollapseError, match="finite parameters"):
        lc.inspect(model, torch.randn(2, 4))


@pytest.mark.long
def test_it_takes_seconds_and_one_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    model = lc.models.build("resnet18", image_size=28, width=16)
    seen = lc.inspect(model, torch.randn(2, 1, 28, 28))
    assert len(calls) == 1
    assert len(seen.sites) == 17
    # Both convolutions of a block go where their rectifier is constant; those behind sums cannot be.
    assert [site.saving.constant is None for site in seen.sites] == [True, False] * 8 + [True]


@pytest.mark.long
@pytest.mark.parametrize(("name", "sites", "saves"), [("mobilenet_v2", 35, 0.8), ("vit", 4, 0.6), ("bert", 4, 0.6)])
def test_networks_of_the_command_line(name: str, sites: int, saves: float) -> None:
    if name in ("vit", "bert"):
        pytest.importorskip("transformers")
    wanted = sources.assumed(name)
    seen = lc.inspect(sources.build(name, wanted).model, wanted.example())
    assert len(seen.sites) == sites
    assert saves * seen.macs < seen.most < seen.macs
    together = [site.saving.together for site in seen.sites]
    for site, before in zip(seen.sites, [0, *together], strict=False):
        assert site.saving.together >= max(before, site.saving.most) * 0.999
        assert site.feeding
    layers = [box.name for box in seen.boxes if box.kind == "layer"]
    assert sorted(layers) == sorted(layer for region in seen.regions.values() for layer in region.layers)
    assert sum(region.macs for region in seen.regions.values()) >= seen.macs
