"""What exact algebra breaks by rounding stays as it came, is named, and nothing else does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import layercollapse as lc
from layercollapse.compiler.driver import api, search
from layercollapse.compiler.driver.bisect import Trials
from layercollapse.compiler.tuning.variants import Variant

MORE = "more than the tolerance"


def layers(model: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]


def overflowing() -> list[nn.Module]:
    """Two layers whose product, 1e40, is no float32, over an input of 1e-20."""
    first, second = nn.Linear(4, 6), nn.Linear(6, 4)
    with torch.no_grad():
        first.weight.mul_(1e20)
        second.weight.mul_(1e20)
        first.bias.zero_()
    return [first, second]


def absorbing() -> list[nn.Module]:
    """Two layers, of which the first adds a quarter of the input to 2²⁴, where float32 has even numbers only.

    The second takes 2²⁴ off again. Nothing of that input is left, in whatever order a processor adds, but in the layer
    that the two are together. The last two outputs are of other neurons, and have all.
    """
    first, second = nn.Linear(4, 8), nn.Linear(8, 4)
    with torch.no_grad():
        first.weight[:4] = torch.eye(4) / 4
        first.bias[:4] = 2.0**24
        first.bias[4:] = 8.0  # positive, as the others, for inputs in [0, 1]
        second.weight[:2] = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]).repeat(1, 2) * (
            torch.arange(8) < 4
        )
        second.weight[2:, :4] = 0.0
        second.bias[:2] = -(2.0**25)
        second.bias[2:] = -8.0 * second.weight[2:].sum(1)
    return [first, second]


def whole(*some: nn.Linear) -> tuple[nn.Linear, ...]:
    """Layers with small whole numbers, which merge without rounding."""
    for layer in some:
        layer.weight.data = torch.randint(-1, 2, layer.weight.shape).float()
        layer.bias.data = torch.randint(-2, 3, layer.bias.shape).float()
    return some


def pair() -> list[nn.Module]:
    return [nn.Linear(4, 9), nn.Linear(9, 4)]


@pytest.mark.parametrize("cost", ["macs", "latency"])
@pytest.mark.parametrize("fragile", [overflowing, absorbing])
def test_the_harmless_pair_merges_and_the_fragile_one_does_not(fragile, cost: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*fragile(), nn.Tanh(), *pair(), nn.Tanh(), *pair())
    x = 1e-20 * torch.rand(5, 4) if fragile is overflowing else torch.rand(5, 4)
    result = lc.collapse(model, x, cost=cost, tolerance=1e-6)
    inner = model[0].out_features
    assert layers(result.model) == [(4, inner), (inner, 4), (4, 4), (4, 4)]
    assert result.max_abs_error <= 1e-6
    assert MORE in result.kept["0 → 1"]
    assert [key for key, reason in result.kept.items() if MORE in reason] == ["0 → 1"]
    assert "0 → 1: kept in sequence: merging them changes the outputs by " in result.explain()


def test_a_merge_over_a_site_that_went_is_left_out_and_the_site_stays_gone() -> None:
    torch.manual_seed(0)
    first, second = absorbing()
    model, x = nn.Sequential(first, nn.ReLU(), second, nn.Tanh(), *pair()), torch.rand(5, 4)
    result = lc.collapse(model, x, box=(0.0, 1.0), cost="macs", tolerance=1e-6)
    assert result.collapsed == ("1",)
    assert layers(result.model) == [(4, 8), (8, 4), (4, 4)]
    assert MORE in result.kept["0 → 2"]


def test_a_proven_site_that_the_data_contradict_is_kept() -> None:
    """The data lie outside the box: both sites are certified, and only one of them misses."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    model[0].bias.data.fill_(5.0)
    model[2].bias.data.fill_(500.0)
    x = 9 * torch.randn(50, 4)
    result = lc.collapse(model, x, box=(0.0, 1.0), cost="macs")
    assert result.collapsed == ("3",)
    assert result.max_abs_error <= 1e-4
    assert (result.sites[0].status, result.sites[0].guarantee) == ("kept", "")
    assert "no neuron can change its sign for an input in the box; but without that the outputs differ by" in (
        result.sites[0].reason
    )


@pytest.mark.parametrize("cost", ["macs", pytest.param("latency", marks=pytest.mark.long)])
def test_where_everything_is_fragile_nothing_is_done(cost: str, tmp_path) -> None:
    """Outputs of 1e6: the last bit of a float32 is above the tolerance. The norms stay as they came, too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten())
    model = nn.Sequential(*model, nn.Linear(64, 9), nn.Linear(9, 3)).eval()
    model[1].running_mean.uniform_(-1, 1)
    model[-1].weight.data.mul_(1e7)
    x = torch.randn(3, 2, 4, 4)
    result = lc.collapse(model, x, cost=cost, tolerance=0)
    assert result.max_abs_error == 0
    assert torch.equal(result.model(x), model(x))
    assert result.after.depth == result.before.depth
    assert result.after.parameters == result.before.parameters
    assert MORE in result.explain()
    result.save(tmp_path)
    assert torch.equal(lc.load(tmp_path)(x), model(x))


def test_a_norm_that_does_not_fold_leaves_the_others_to_fold() -> None:
    """A scale and a shift make the difference of numbers of 1e7 of 1e4 ± 1e-3."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU()),
        *(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Sigmoid(), nn.Linear(8, 8), nn.BatchNorm1d(8)),
    ).eval()
    model[3].bias.data.fill_(1e4)
    model[4].running_mean.fill_(1e4)
    model[4].running_var.fill_(1e-5)
    x = torch.rand(5, 4)
    result = lc.collapse(model, x, cost="macs", tolerance=1e-5)
    left = [name for name, reason in result.kept.items() if reason.startswith("left as it came")]
    assert "4" in left or "3" in left
    assert not {"6", "7"} & {*left}
    assert "7.scale" not in result.model.state_dict()
    assert result.max_abs_error <= 1e-5


def test_half_precision_merges_what_is_exact_in_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*whole(nn.Linear(4, 6), nn.Linear(6, 4)), nn.Tanh(), *pair()).bfloat16()
    x = torch.randint(-2, 3, (5, 4)).bfloat16()
    result = lc.collapse(model, x, cost="macs", tolerance=1e-4)
    assert layers(result.model) == [(4, 4), (4, 9), (9, 4)]
    assert result.max_abs_error == 0
    assert MORE in result.kept["3 → 4"]
    assert layers(lc.collapse(model, x, cost="macs", tolerance=0.1).model) == [(4, 4), (4, 4)]


def test_neurons_go_where_a_merge_does_not() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*absorbing(), nn.Tanh(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.rand(50, 4)
    with torch.no_grad():
        z = model[:4](x)
        model[3].bias[:3] -= z.amax(0)[:3] + 0.01  # off on the data, and not whatever the input
        model[3].bias[3:] -= z.mean(0)[3:]  # mixed
    with torch.no_grad(), lc.EntropyProbe(model) as probe:
        model(x)
    result = lc.collapse(model, x, probe.report(), partial=True, cost="macs", tolerance=1e-6)
    assert (result.sites[0].status, result.sites[0].guarantee) == ("partial", "empirical")
    assert layers(result.model)[:2] == [(4, 8), (8, 4)]
    assert layers(result.model)[2][1] <= 5
    assert MORE in result.kept["0 → 1"]


def test_nan_in_both_is_the_same() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(*pair(), nn.Softmax(-1), *pair()), torch.rand(5, 4)
    x[1] = torch.nan
    x[2] = torch.inf
    result = lc.collapse(model, x, cost="macs")
    assert result.max_abs_error <= 1e-4
    assert layers(result.model) == [(4, 4), (4, 4)]


def test_the_layers_as_they_came_have_to_keep_the_tolerance_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing removed or merged still writes a batch norm as a scale and a shift, which half precision rounds."""
    torch.manual_seed(0)
    model = nn.Sequential(*whole(nn.Linear(4, 6), nn.Linear(6, 4)), nn.Tanh(), nn.BatchNorm1d(4), nn.Sigmoid()).eval()
    model[3].running_mean.uniform_(-1, 1)
    model[3].running_var.uniform_(0.5, 2)
    model, x = model.bfloat16(), torch.randint(-2, 3, (50, 4)).bfloat16()
    slow = {Variant.UNCHANGED: 0.5, Variant.INPUT: 1.0}
    monkeypatch.setattr(
        api.Latency, "networks", lambda self, models, *_, **__: {name: slow.get(name, 2.0) for name in models}
    )
    result = lc.collapse(model, x, tolerance=0.1)
    assert result.form == Variant.UNCHANGED
    assert result.max_abs_error > 0
    result = lc.collapse(model, x, tolerance=0)
    assert layers(result.model) == [(4, 4)]
    assert result.max_abs_error == 0


def keeps(error: float) -> bool:
    return error <= 0.5


def test_one_of_many_is_found_by_halves() -> None:
    tried: list[list[int]] = []

    def error(some: list[int]) -> float:
        tried.append(some)
        return float(37 in some)

    taken, missed = Trials(24).harmless(range(100), 1.0, error, keeps)
    assert sorted([*taken, 37]) == list(range(100))
    assert missed == [([37], 1.0)]
    assert len(tried) <= 14
    # Two that are harmless but together: the later goes.
    taken, missed = Trials(24).harmless(range(8), 1.0, lambda some: float({2, 3} <= {*some}), keeps)
    assert missed == [([3], 1.0)]


def test_the_trials_are_bounded() -> None:
    tried = 0

    def error(some: list[int]) -> float:
        nonlocal tried
        tried += 1
        return float(len(some) > 0)

    trials = Trials(24)
    taken, missed = trials.harmless(range(1000), 1.0, error, keeps)
    assert (taken, trials.left) == ([], 0)
    assert tried == 24
    assert sorted(unit for block, _ in missed for unit in block) == list(range(1000))
    assert trials.harmless([1], 1.0, error, keeps) == ([], [([1], 1.0)])
    assert search._TRIALS == 24
