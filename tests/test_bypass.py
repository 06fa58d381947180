"""Neurons that only multiply, beside others that bend: carried by a layer beside the rectifier where that is less work.

Every block reads `d` inputs, has `h` hidden neurons of which the first `on` are made to be on, and gives `d` outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import layercollapse as lc
from layercollapse.collapse import choice, forms, race

Build = Callable[..., nn.Module]
TOLERANCE = {"rtol": 0.0, "atol": 1e-10}


def linear(d: int, o: int, **options: Any) -> nn.Module:
    return nn.Linear(d, o)


def conv(dims: int) -> Build:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return lambda d, o, kernel=1, **options: kinds[dims - 1](d, o, kernel, **options)


LAYOUTS: dict[str, tuple[Build, tuple[int, ...]]] = {
    "flat": (linear, (64, 4)),
    "tokens": (linear, (6, 5, 4)),
    "1d": (conv(1), (6, 4, 9)),
    "2d": (conv(2), (6, 4, 5, 6)),
    "3d": (conv(3), (6, 4, 3, 3, 4)),
}
RECTIFIERS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda h: nn.ReLU(),
    "relu6": lambda h: nn.ReLU6(),
    "hardtanh": lambda h: nn.Hardtanh(-0.5, 0.75),
    "leaky_relu": lambda h: nn.LeakyReLU(0.2),
    "prelu": lambda h: nn.PReLU(h, 0.3),
    "rrelu": lambda h: nn.RReLU(),
    "threshold": lambda h: nn.Threshold(0.0, 0.0),
}


class Residual(nn.Module):
    """x + body(x), or with a layer of its own in the skip."""

    def __init__(self, body: nn.Module, skip: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.skip = body, skip

    def forward(self, x):
        return self.body(x) + (x if self.skip is None else self.skip(x))


def block(layer: Build, act: nn.Module, h: int = 12, on: int = 0, bias: float = 50.0) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(layer(4, h), act, layer(h, 4)).double().eval()
    model[0].bias.data[:on] += bias
    model[2].weight.data[:, :on] *= 0.02  # so that blocks behind this one read more than constants
    return model


def counted(model: nn.Module, x: torch.Tensor, **options: Any) -> lc.CollapseResult:
    with torch.no_grad(), lc.EntropyProbe(model) as probe:
        model(x)
    return lc.collapse(model, x, probe.report(), partial=True, tolerance=1e-9, **{"cost": "macs", **options})


def data(size: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("kind", RECTIFIERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_rectifier_in_every_layout(layout: str, kind: str) -> None:
    layer, size = LAYOUTS[layout]
    # Over (N, L, C) a PReLU has its slopes along L.
    model, x = block(layer, RECTIFIERS[kind](1 if layout == "tokens" else 12)), data(size)
    weight, bias = model[0].weight.data, model[0].bias.data
    weight[:9], bias[:9] = 0.1 * weight[:9], 0.3  # 0.1 to 0.5: on also for those that saturate
    bias[:3] -= 0.6  # below the bend at 0, where a leaky one multiplies by its slope; not for a hardtanh
    weight[9:], bias[9:] = 3 * weight[9:], 0.0
    straight = {"relu": 6, "relu6": 6, "threshold": 6}.get(kind, 9)
    result = counted(model, x)
    (site,) = result.sites
    assert (site.status, site.guarantee, site.neurons, site.removed) == ("partial", "empirical", 12, 9)
    assert f"9 of 12 neurons are gone, {straight} of them carried by a linear bypass" in site.reason
    assert result.after.macs == result.before.macs * (3 * 8 + 16) // (12 * 8)
    torch.testing.assert_close(result.model(x), model(x), **TOLERANCE)


@pytest.mark.parametrize(("on", "carried"), [(4, 0), (5, 5)])
def test_only_where_it_is_less_work(on: int, carried: int) -> None:
    """A layer of 8·8 instead of `on`·(8 + 8) multiply-accumulates: not for 4 neurons."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 8)).double()
    model[0].bias.data[:on] += 50
    x = data((6, 8))
    result = lc.collapse(model, x, None, box=(-1.0, 1.0), tolerance=1e-9, cost="macs")
    (site,) = result.sites
    assert site.removed == carried
    assert result.after.macs == result.before.macs - 6 * (carried * 16 - 64 * bool(carried))
    if carried:
        assert (site.status, site.guarantee) == ("partial", "certified")
        assert site.reason.startswith("5 on for an input in the box; ")
    else:
        assert (site.status, site.guarantee) == ("kept", "")
        assert site.reason.endswith(
            "4 on for an input in the box: to carry them beside the rectifier was not possible, or more work"
        )
    torch.testing.assert_close(result.model(x), model(x), **TOLERANCE)


def test_algebra_proves_neurons_on() -> None:
    """What a rectifier gives, times weights that are not negative, plus such a bias."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2)).double()
    model[2].weight.data[:7].abs_()
    model[2].bias.data[:7].abs_()
    x = 100 * data((50, 3))
    result = lc.collapse(model, x, None, tolerance=1e-9, cost="macs")
    site = result.sites[1]
    assert (site.status, site.guarantee, site.removed) == ("partial", "exact", 7)
    assert site.reason.startswith("7 on whatever the input; ")
    assert "7 of 9 neurons are gone, 7 of them carried by a linear bypass" in site.reason
    torch.testing.assert_close(result.model(-x), model(-x), **TOLERANCE)


@pytest.mark.parametrize(("on", "guarantee"), [(2, "certified"), (3, "empirical")])
def test_the_guarantee_is_that_of_what_was_used(on: int, guarantee: str) -> None:
    """Neuron 0 is proven off, `on` others are on only on the data: two are too few to carry and weaken nothing."""
    model, x = block(linear, nn.ReLU()), 0.1 * data((60, 4))
    reach = model[0].weight.data.abs().sum(1)  # of an input in the box
    model[0].bias.data = torch.where(torch.arange(12) <= on, 0.5 * reach, 0.0)
    model[0].bias.data[0] = -50
    (site,) = counted(model, x, box=(-1.0, 1.0)).sites
    assert (site.status, site.guarantee, site.removed) == ("partial", guarantee, 1 if on == 2 else 4)
    assert site.reason.startswith("1 off for an input in the box; ")
    assert ("3 on in the data counted" in site.reason) == (on == 3)


@pytest.mark.parametrize("skip", [None, "layer"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_skip_over_the_block_is_absorbed(layout: str, skip: str | None) -> None:
    layer, size = LAYOUTS[layout]
    model = Residual(block(layer, nn.ReLU(), on=7), None if skip is None else layer(4, 4)).double()
    x = data(size)
    result = counted(model, x)
    layers = [m for m in result.model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    assert [(m.weight.shape[0], m.weight.shape[1]) for m in layers].count((4, 4)) == 1
    assert len(layers) == 3
    assert result.model.code.count("aten.add") == 1
    # In a layer that the skip has anyway the neurons cost nothing.
    gain = 7 * 8 - (16 if skip is None else 0)
    assert result.before.macs - result.after.macs == gain * x.numel() // 4
    torch.testing.assert_close(result.model(x), model(x), **TOLERANCE)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_skip_from_a_layer_of_the_same_size(layout: str) -> None:
    """What the block reads is made by a layer as the bypass might join, but that one reads something else."""
    layer, size = LAYOUTS[layout]
    model = nn.Sequential(layer(4, 4), Residual(block(layer, nn.ReLU(), on=8))).double()
    x = data(size)
    result = counted(model, x)
    assert "carried by a linear bypass" in result.sites[0].reason
    torch.testing.assert_close(result.model(x), model(x), **TOLERANCE)


class Blocks(nn.Module):
    """A transformer without attention: norms, blocks and skips, before the blocks or behind."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(2))
        self.blocks = nn.ModuleList(block(linear, nn.ReLU(), h=16, on=on) for on in (6, 2))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for norm, body in zip(self.norms, self.blocks, strict=True):
            x = x + body(norm(x)) if self.first else norm(x + body(x))
        return self.head(x)


@pytest.mark.parametrize("first", [True, False])
def test_blocks_of_a_transformer(first: bool) -> None:
    model, x = Blocks(first).double(), data((60, 5, 4))
    result = counted(model, x)
    # With nothing between, the head goes into the last block, whose second layer then has 3 outputs: less to carry.
    assert [site.status for site in result.sites] == ["partial", "partial" if first else "kept"]
    assert "6 of them carried by a linear bypass" in result.sites[0].reason
    assert result.after.macs < result.before.macs
    assert result.after.parameters < result.before.parameters
    torch.testing.assert_close(result.model(x), model(x), **TOLERANCE)


def test_borders() -> None:
    """A padded second layer reads the bypass's constants inside the border only; a padded first one makes it a 3x3."""
    x = data((4, 4, 6, 7))
    for kernels, paddings, carried in (((1, 3), (0, 1), 14), ((3, 1), (1, 0), 14), ((3, 3), (1, 1), 0)):
        torch.manual_seed(0)
        layers = [
            nn.Conv2d(a, b, k, padding=p) for (a, b), k, p in zip(((4, 16), (16, 2)), kernels, paddings, strict=True)
        ]
        model = nn.Sequential(layers[0], nn.ReLU(), layers[1]).double()
        model[0].bias.data[:14] += 50
        result = counted(model, x)
        assert result.sites[0].removed == carried
        assert result.after.macs < result.before.macs if carried else result.after.macs == result.before.macs
        torch.testing.assert_close(result.model(x), model(x), **TOLERANCE)
        larger = torch.cat([x, x], 2)
        torch.testing.assert_close(result.model(larger), model(larger), **TOLERANCE)


def test_off_saturated_and_on_together_leave_the_two_that_bend() -> None:
    model, x = block(linear, nn.Hardtanh(-0.5, 0.75)), data((80, 4))
    model[0].weight.data[:10] *= 0.1
    model[0].bias.data = torch.tensor([5.0, -5.0] * 2 + [0.1] * 6 + [0.0] * 2, dtype=torch.float64)
    result = counted(model, x)
    (site,) = result.sites
    assert site.removed == 10
    assert site.reason.startswith("2 off, 2 saturated in the data counted; 6 on in the data counted; mixed: 2 of 12 ")
    torch.testing.assert_close(result.model(x), model(x), **TOLERANCE)


def test_neurons_that_bend_for_nobody_leave_a_layer() -> None:
    model, x = block(linear, nn.ReLU(), on=9), data((6, 4))
    model[2].weight.data[:, 9:] = 0
    result = counted(model, x)
    assert (result.sites[0].status, result.sites[0].guarantee) == ("collapsed", "empirical")
    assert result.sites[0].reason == "9 on in the data counted; nothing that the outputs need reads its other neurons"
    assert (result.after.depth, result.after.macs) == (1, 6 * 16)
    torch.testing.assert_close(result.model(x), model(x), **TOLERANCE)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = block(linear, nn.ReLU(), on=9, bias=3.0)
        self.body[0].bias.data[9:] = 0.0
        self.body[2].bias.data.zero_()

    def forward(self, x):
        return self.body(self.body(x))


class Tied(nn.Module):
    """The first layer's weight also projects back."""

    def __init__(self) -> None:
        super().__init__()
        self.body = block(linear, nn.ReLU(), on=9)

    def forward(self, x):
        return self.body(x) @ self.body[0].weight.T


class Read(nn.Module):
    """The hidden neurons are an output, too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = block(linear, nn.ReLU(), on=9)

    def forward(self, x):
        z = self.body[1](self.body[0](x))
        return self.body[2](z), z


@pytest.mark.parametrize("kind", [Twice, Tied, Read])
def test_what_others_use_stays(kind: type[nn.Module]) -> None:
    model, x = kind().double(), data((200, 4))
    result = counted(model, x)
    assert {site.status for site in result.sites} == {"kept"}
    assert result.after.parameters == result.before.parameters
    torch.testing.assert_close(result.model(x), model(x), **TOLERANCE)


def test_grouped_layers_stay() -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(4, 12, 1, groups=2), nn.ReLU(), nn.Conv2d(12, 4, 1))
    model, x = nn.Sequential(*layers).double(), data((3, 4, 5, 5))
    model[0].bias.data[:10] += 50
    assert counted(model, x).sites[0].removed == 0


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def give(**milliseconds: float) -> None:
        names = {forms.INPUT: "input", choice.ALL: "plain", choice.CARRIED: "carried", forms.CHOSEN: "carried"}
        monkeypatch.setattr(
            race, "timed", lambda models, *_, **__: {name: milliseconds[names[name]] for name in models}
        )

    return give


def test_time_decides(times: Callable[..., None]) -> None:
    model, x = block(linear, nn.ReLU(), on=9), data((6, 4))
    times(input=5, plain=5, carried=3)
    faster = counted(model, x, cost="latency")
    assert (faster.form, faster.sites[0].status, faster.sites[0].removed) == (forms.CHOSEN, "partial", 9)
    torch.testing.assert_close(faster.model(x), model(x), **TOLERANCE)
    times(input=5, plain=5, carried=6)
    slower = counted(model, x, cost="latency")
    assert (slower.form, slower.sites[0].status, slower.sites[0].removed) == (choice.ALL, "kept", 0)
    assert f"every rule applied: 5.000 ms, {choice.CARRIED}: 6.000 ms" in slower.explain()
    times(input=5, plain=5, carried=3)
    model[0].bias.data[0] -= 50  # 8 are left
    flips = counted(model, x, cost="latency", data=[100 * x])  # and bend on other data
    assert flips.form == choice.ALL


def test_layers_that_take_longer_are_no_alternative(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four outputs over four inputs at 9 ms: the three layers take 11 ms, the two took 2 ms."""
    from layercollapse.collapse import search

    monkeypatch.setattr(search, "Clock", lambda device: lambda op, inputs: 9.0 if op.size == (4, 4) else 1.0)
    monkeypatch.setattr(race, "timed", lambda *args, **kwargs: pytest.fail("timed"))
    model, x = block(linear, nn.ReLU(), on=9), data((6, 4))
    assert counted(model, x, cost="latency").form == choice.ALL
