"""The race between the ways to write one collapsed network, with times that are given."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import layercollapse as lc
from layercollapse.collapse import forms

MERGED, SEPARATE, EIGHTS = forms.ALL, "no layers merged in sequence", "channels dropped in eights"


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give the times of the input and of each form, in ms, in the order of the race; a second race repeats them."""

    def give(**milliseconds: float) -> None:
        by_name = {
            "input": forms.INPUT,
            "merged": MERGED,
            "separate": SEPARATE,
            "eights": EIGHTS,
            "unchanged": forms.UNCHANGED,
        }
        known = {by_name[key]: value for key, value in milliseconds.items()}

        def timed(models, example_inputs, device, passes):
            assert set(models) <= set(known)
            return {name: known[name] for name in models}

        monkeypatch.setattr(forms, "_timed", timed)

    return give


def shrinking() -> tuple[nn.Module, torch.Tensor]:
    """Two linear layers in sequence, then one of whose 20 inputs 11 are read."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 4))
    model[3].weight.data[:, 11:] = 0
    return model, torch.randn(5, 6)


@pytest.mark.parametrize(
    ("given", "form", "widths"),
    [
        ({"input": 5, "merged": 3, "separate": 4, "eights": 3.5}, MERGED, [11]),
        ({"input": 5, "merged": 4, "separate": 3, "eights": 3.5}, SEPARATE, [9, 11]),
        ({"input": 5, "merged": 4, "separate": 3.95, "eights": 3.9}, MERGED, [11]),  # within the noise
        ({"input": 5, "merged": 4, "separate": 3.9, "eights": 3.5}, EIGHTS, [16]),
    ],
)
def test_the_fastest_form_wins(times, given: dict, form: str, widths: list[int]) -> None:
    model, x = shrinking()
    times(**given)
    result = lc.collapse(model, x, None, tolerance=1e-5)
    assert result.form == form
    assert [layer.out_features for layer in result.model.modules() if isinstance(layer, nn.Linear)] == [*widths, 4]
    torch.testing.assert_close(result.model(x), model(x))
    assert (result.latency_before, result.latency_after) == (5, result.latency[form])
    assert f"5.000 ms → {result.latency[form]:.3f} ms (faster), with {form}" in result.explain()


def test_what_is_slower_than_the_input_is_said() -> None:
    model, x = shrinking()
    result = lc.collapse(model, x, None)
    for before, after, text in (
        (1.0, 1.02, "no faster: a difference below 3% is within the noise"),
        (1.0, 1.5, "slower; no other way to write it was faster"),
    ):
        timed = {forms.INPUT: before, result.form: after, "another": 7.0}
        said = lc.CollapseResult(**{**vars(result), "latency": timed}).explain()
        assert text in said
        assert "also timed: another: 7.000 ms" in said


def test_nothing_slower_than_the_input_is_emitted(times) -> None:
    model, x = shrinking()
    nn.init.constant_(model[1].bias, 50.0)  # on, whatever the input
    times(input=1, merged=1.5, separate=1.4, eights=1.3, unchanged=1)
    result = lc.collapse(model, x, box=(-5.0, 5.0), tolerance=1e-5)
    assert result.form == forms.UNCHANGED
    assert result.collapsed == ()
    assert "slower in every way" in result.sites[0].reason
    assert result.after == result.before
    torch.testing.assert_close(result.model(x), model(x))
    times(input=1, merged=1.5, separate=1.4, eights=1.3, unchanged=2)  # the emitted twin is no faster either
    assert lc.collapse(model, x, box=(-5.0, 5.0), tolerance=1e-5).collapsed == ("2",)


def test_a_close_race_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = shrinking()
    seen = []

    def timed(models, example_inputs, device, passes):
        seen.append(tuple(models))
        slow = 9.0 if len(seen) == 1 else 1.0  # the first race was disturbed
        return {name: slow if name == MERGED else 3.0 for name in models}

    monkeypatch.setattr(forms, "_timed", timed)
    assert lc.collapse(model, x, None).form == MERGED
    assert [len(names) for names in seen] == [4, 4]


def test_an_alternative_wins_twice_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = shrinking()
    seen = []

    def timed(models, example_inputs, device, passes):
        seen.append(tuple(models))
        fastest = SEPARATE if len(seen) == 1 else EIGHTS  # which was behind in the first race, and does not run again
        return {name: 1.0 if name == fastest else 4.0 if name == EIGHTS else 3.0 for name in models}

    monkeypatch.setattr(forms, "_timed", timed)
    assert lc.collapse(model, x, None).form == MERGED
    assert set(seen[1]) == {forms.INPUT, MERGED, SEPARATE}


def test_nothing_to_change_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "_timed", lambda *args, **kwargs: pytest.fail("timed"))
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)), torch.randn(5, 6)
    result = lc.collapse(model, x, None)
    assert result.latency_before is result.latency_after is None
    assert "ms" not in result.explain()
    shrunk, x = shrinking()
    counted = lc.collapse(shrunk, x, None, cost="macs")
    assert counted.latency == {}
    assert counted.form == MERGED


@pytest.mark.timed
def test_the_times_are_measured() -> None:
    model, x = shrinking()
    result = lc.collapse(model, x, None)
    assert {forms.INPUT, MERGED} <= set(result.latency)
    assert all(0 < time < 1000 for time in result.latency.values())
