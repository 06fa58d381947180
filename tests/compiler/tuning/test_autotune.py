"""The race between the ways to write one collapsed network, with times that are given."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import layercollapse as lc
from layercollapse.compiler.driver import api
from layercollapse.compiler.tuning.variants import Variant
from networks import shrinking

SEQUENCE = "layers kept in sequence"


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, ...]]]:
    """Give the times of the input and of each form, in ms, one number or one for each race; returns the races.

    In every region layers are fastest in sequence.
    """

    def give(**milliseconds: float | list[float]) -> list[tuple[str, ...]]:
        names = {"input": Variant.INPUT, "every": Variant.ALL, "chosen": Variant.CHOSEN, "unchanged": Variant.UNCHANGED}
        known = {names[key]: value for key, value in milliseconds.items()}
        races: list[tuple[str, ...]] = []

        def networks(self, models, *_, **__):
            if Variant.INPUT not in models:
                return {name: 1.0 if name == SEQUENCE else 2.0 for name in models}
            races.append(tuple(models))
            given = {name: known[name] for name in models}
            return {name: v[len(races) - 1] if isinstance(v, list) else v for name, v in given.items()}

        monkeypatch.setattr(api.Latency, "networks", networks)
        return races

    return give


@pytest.mark.parametrize(
    ("given", "form", "widths"),
    [
        ({"input": 5, "every": 3, "chosen": 4}, Variant.ALL, [11]),
        ({"input": 5, "every": 4, "chosen": 3}, Variant.CHOSEN, [9, 11]),
        ({"input": 5, "every": 3.95, "chosen": 4}, Variant.CHOSEN, [9, 11]),  # within the noise
        ({"input": 5, "every": [3, 4], "chosen": 3.5}, Variant.CHOSEN, [9, 11]),  # the first race was disturbed
    ],
)
def test_the_fastest_form_wins(times, given: dict, form: str, widths: list[int]) -> None:
    model, x = shrinking()
    races = times(**given)
    result = lc.collapse(model, x, None, tolerance=1e-5)
    assert result.form == form
    assert [layer.out_features for layer in result.model.modules() if isinstance(layer, nn.Linear)] == [*widths, 4]
    torch.testing.assert_close(result.model(x), model(x))
    assert (result.latency_before, result.latency_after) == (5, result.latency[form])
    time = result.latency[form]
    assert f"5.000 ms → {time:.3f} ms ({5 / time:.1f}x faster), with {form}" in result.explain()
    assert set(races[0]) == {Variant.INPUT, Variant.ALL, Variant.CHOSEN}


def test_nothing_slower_than_the_input_is_emitted(times) -> None:
    model, x = shrinking()
    nn.init.constant_(model[1].bias, 50.0)  # on, whatever the input
    times(input=1, every=1.5, chosen=1.4, unchanged=1)
    result = lc.collapse(model, x, box=(-5.0, 5.0), tolerance=1e-5)
    assert result.form == Variant.UNCHANGED
    assert result.collapsed == ()
    assert "slower in every way" in result.sites[0].reason
    assert result.after == result.before
    torch.testing.assert_close(result.model(x), model(x))
    times(input=1, every=1.5, chosen=1.4, unchanged=2)  # the emitted twin is no faster either
    assert lc.collapse(model, x, box=(-5.0, 5.0), tolerance=1e-5).collapsed == ("2",)


def test_nothing_to_change_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.Latency, "networks", lambda *args, **kwargs: pytest.fail("timed"))
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)), torch.randn(5, 6)
    result = lc.collapse(model, x, None)
    assert result.latency_before is result.latency_after is None
    assert "ms" not in result.explain()
    shrunk, x = shrinking()
    counted = lc.collapse(shrunk, x, None, cost="macs")
    assert counted.latency == {}
    assert counted.form == Variant.ALL
