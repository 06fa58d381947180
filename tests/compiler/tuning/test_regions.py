"""Every region in the way that is the fastest there, with times that are given."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import layercollapse as lc
from layercollapse.compiler.driver import api
from layercollapse.compiler.tuning.variants import Variant

SEQUENCE, EIGHTS = "layers kept in sequence", "channels dropped in eights"
Times = Callable[[dict[str, nn.Module]], dict[str, float]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Callable[[Times], list[tuple[str, ...]]]:
    """Give the times of regions, in ms; returns the list of the races of regions, each by its ways."""

    def give(times: Times) -> list[tuple[str, ...]]:
        races: list[tuple[str, ...]] = []

        def networks(self, models, inputs, *, seconds, passes):
            if Variant.INPUT in models:
                return dict.fromkeys(models, 1.0)
            races.append(tuple(models))
            with torch.no_grad():
                results = [model(*inputs) for model in models.values()]
            assert len({tuple(y.shape for y in result) for result in results}) == 1
            return times(models)

        monkeypatch.setattr(api.Latency, "networks", networks)
        return races

    return give


def layers(model: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]


def narrow(*widths: int) -> nn.Sequential:
    """Pairs of linear layers that one layer can replace, with rectifiers between them."""
    parts: list[nn.Module] = []
    for inner in widths:
        parts += [nn.Linear(6, inner), nn.Linear(inner, 6), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def merged_is_faster(inner: int) -> Times:
    """One layer is faster than two, but for pairs of this width."""
    return lambda models: {
        way: 2.0 if (len(layers(model)) == 1) == (layers(models[SEQUENCE])[0][1] == inner) else 1.0
        for way, model in models.items()
    }


def test_two_regions_choose_differently(seen) -> None:
    torch.manual_seed(0)
    model, x = narrow(7, 5), torch.randn(3, 6)
    races = seen(merged_is_faster(5))
    model[4].weight.data[0] = 0.0  # so that the regions are not the same in what else is left out
    result = lc.collapse(model, x, None, tolerance=1e-5)
    assert layers(result.model) == [(6, 6), (6, 5), (5, 6)]
    assert result.form == Variant.CHOSEN
    torch.testing.assert_close(result.model(x), model(x))
    chosen = {
        region.layers: (region.variant, dict(region.times)) for region in result.regions if SEQUENCE in region.times
    }
    assert chosen == {
        ("0", "1"): (Variant.ALL, {Variant.ALL: 1.0, SEQUENCE: 2.0}),
        ("3", "4"): (SEQUENCE, {Variant.ALL: 2.0, SEQUENCE: 1.0}),
    }
    assert (
        races.count((Variant.ALL, SEQUENCE)) + races.count((SEQUENCE, Variant.ALL)) == 3
    )  # the loser of one is second
    assert "3, 4: layers kept in sequence: 1.000 ms, every pass applied: 2.000 ms" in result.explain()


def test_a_way_that_is_not_in_the_model_is_not_said_to_be(seen, monkeypatch) -> None:
    """The region alone is faster in two layers, the network as a whole is not."""
    torch.manual_seed(0)
    model, x = narrow(5), torch.randn(3, 6)
    seen(merged_is_faster(5))
    alone = api.Latency.networks

    def networks(self, models, *arguments, **settings):
        if Variant.INPUT in models:
            return {name: 9.0 if name == Variant.CHOSEN else 1.0 for name in models}
        return alone(self, models, *arguments, **settings)

    assert lc.collapse(model, x, None).regions[0].taken
    monkeypatch.setattr(api.Latency, "networks", networks)
    result = lc.collapse(model, x, None)
    assert (result.form, result.regions[0].variant, result.regions[0].taken) == (Variant.ALL, SEQUENCE, False)
    assert layers(result.model) == [(6, 6)]
    assert "every pass applied: 2.000 ms (not taken: the network as a whole was not faster so)" in result.explain()


def test_regions_that_are_the_same_are_timed_once(seen) -> None:
    torch.manual_seed(0)
    model, x = narrow(7, 7, 7), torch.randn(3, 6)
    races = seen(merged_is_faster(0))
    result = lc.collapse(model, x, None)
    assert races == [(Variant.ALL, SEQUENCE)]
    assert [region.layers for region in result.regions] == [("0", "1"), ("3", "4"), ("6", "7")]
    assert "0, 1 and 2 more parts like it: every pass applied: 1.000 ms" in result.explain()
    assert result.form == Variant.ALL


def test_a_way_wins_twice_or_not_at_all(seen) -> None:
    torch.manual_seed(0)
    model, x = narrow(7), torch.randn(3, 6)
    count = 0

    def disturbed(models):
        nonlocal count
        count += 1
        return {Variant.ALL: 9.0 if count == 1 else 1.0, SEQUENCE: 3.0}

    races = seen(disturbed)
    result = lc.collapse(model, x, None)
    assert races == [(Variant.ALL, SEQUENCE), (SEQUENCE, Variant.ALL)]
    assert layers(result.model) == [(6, 6)]
    assert result.regions[0].times == {Variant.ALL: 1.0, SEQUENCE: 3.0}
    seen(lambda models: {Variant.ALL: 1.0, SEQUENCE: 0.99})  # within the noise
    assert layers(lc.collapse(model, x, None).model) == [(6, 6)]


def test_one_layer_is_taken_where_it_is_more_work_and_faster(seen) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8)), torch.randn(3, 8)
    races = seen(lambda models: {way: 1.0 if way == Variant.THRIFT else 2.0 for way in models})
    result = lc.collapse(model, x, None, tolerance=1e-5)
    assert layers(result.model) == [(8, 8), (8, 8)]
    assert set(races[0]) == {Variant.ALL, Variant.THRIFT}
    assert "0, 1: layers merged though that is more work: 1.000 ms, every pass applied: 2.000 ms" in result.explain()
    torch.testing.assert_close(result.model(x), model(x))
    seen(lambda models: {way: 3.0 if way == Variant.THRIFT else 2.0 for way in models})
    result = lc.collapse(model, x, None, tolerance=1e-5)
    assert layers(result.model) == [(8, 2), (2, 8), (8, 8)]
    assert result.kept["0 → 1"] == "merged they need 2.0 times the multiply-accumulates"


def test_a_rectifier_stays_where_that_is_faster(seen) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 4)), torch.rand(3, 6)
    nn.init.constant_(model[0].bias, 50.0)
    seen(lambda models: {way: 1.0 if way == "rectifiers kept" else 2.0 for way in models})
    result = lc.collapse(model, x, box=(0.0, 1.0), tolerance=1e-4)
    assert layers(result.model) == [(6, 9), (9, 4), (4, 4)]
    assert result.sites[0].status == "kept"
    assert "faster with it" in result.sites[0].reason
    torch.testing.assert_close(result.model(x), model(x))
    seen(lambda models: {way: 3.0 if way == "rectifiers kept" else 2.0 for way in models})
    result = lc.collapse(model, x, box=(0.0, 1.0), tolerance=1e-4)
    assert layers(result.model) == [(6, 4), (4, 4)]
    assert result.sites[0].status == "collapsed"


def test_channels_stay_a_multiple_of_eight_where_that_is_faster(seen) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(*(nn.Linear(*s) for s in [(6, 20), (20, 20), (20, 4)])), torch.randn(5, 6)
    model = nn.Sequential(model[0], nn.ReLU(), nn.Linear(20, 6), nn.Tanh(), nn.Linear(6, 20), nn.ReLU(), model[2])
    model[2].weight.data[:, 11:] = 0
    model[6].weight.data[:, 5:] = 0
    fast = {11: EIGHTS, 5: Variant.ALL}
    seen(lambda models: {way: 1.0 if way == fast[layers(models[Variant.ALL])[0][1]] else 2.0 for way in models})
    result = lc.collapse(model, x, None)
    assert layers(result.model) == [(6, 16), (16, 6), (6, 5), (5, 4)]
    torch.testing.assert_close(result.model(x), model(x))


class Blocks(nn.Module):
    """A concatenation, a mean, layers side by side and a size that the network reads: a region of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.cut, self.out = nn.Conv2d(8, 4, 1), nn.Linear(4, 3)
        self.d.weight.data[:, :, 0] = self.d.weight.data[:, :, 2] = 0
        self.d.weight.data[:, :, :, 0] = self.d.weight.data[:, :, :, 2] = 0

    def forward(self, x):
        x = torch.relu(self.cut(torch.cat([self.a(x), torch.relu(x)], 1)))
        x = torch.tanh(self.b(x) + self.c(x))
        x = torch.relu(self.d(x)).reshape(x.shape[0], 4, -1).mean(-1)
        return self.out(x)


def test_every_way_is_a_network_that_runs(seen) -> None:
    torch.manual_seed(0)
    model, x = Blocks(), torch.randn(2, 4, 6, 6)
    tried = set()

    def other(models):
        tried.update(models)
        return {way: 2.0 if way == Variant.ALL else 1.0 for way in models}

    seen(other)
    result = lc.collapse(model, x, None, tolerance=1e-5)
    assert {"layers kept side by side", "kernels not trimmed", "layers kept as they are"} <= tried
    torch.testing.assert_close(result.model(x), model(x))
    torch.testing.assert_close(result.model(x[:1]), model(x[:1]))
