"""How many sites go, which first, and what happens where accuracy is lost."""

import pytest
import torch
from torch import nn

import layercollapse as lc
from layercollapse.pipeline import checkpoint
from layercollapse.prune.least_squares import fit_lines
from layercollapse.strategies.base import Action, Taken
from layercollapse.strategies.collapse import Collapse, tried_since
from situations import situation


class Residual(nn.Module):
    """Three blocks: each has a site inside, and one on the sum."""

    def __init__(self):
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.second = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.inside = nn.ModuleList(nn.ReLU() for _ in range(3))
        self.outside = nn.ModuleList(nn.ReLU() for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        for first, inside, second, outside in zip(self.first, self.inside, self.second, self.outside, strict=True):
            x = outside(second(inside(first(x))) + x)
        return self.head(x)


def taken(*steps, entropy=None):
    """(sites, within), the best of them last among those within."""
    best = max(number for number, (_, within) in enumerate(steps) if within)
    return [Taken(tuple(names), within, n == best, entropy or {}) for n, (names, within) in enumerate(steps)]


def test_sites_that_read_sums_go_last_and_low_entropies_first():
    torch.manual_seed(0)
    found = situation(Residual(), torch.randn(32, 4))
    order = list(Collapse(share=1.0).propose(found).linear)
    entropy = {layer.name: layer.mean for layer in found.report}
    assert [name.split(".")[0] for name in order] == ["inside"] * 3 + ["outside"] * 3
    assert [entropy[name] for name in order[:3]] == sorted(entropy[name] for name in order[:3])
    assert [entropy[name] for name in order[3:]] == sorted(entropy[name] for name in order[3:])
    assert len(Collapse(share=0.35).propose(found).linear) == 3  # of six


def test_lines_are_fitted_to_the_network_that_is_gone_back_to(tmp_path):
    torch.manual_seed(0)
    model, seen = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)), []
    data = [torch.randn(32, 4)]

    def train(trained):
        linear = [type(module).__name__ == "LinearSite" for module in trained]
        seen.append(sum(linear))
        if seen[-1] == 2:
            with torch.no_grad():
                trained[0].weight.mul_(3.0)  # what is lost with two sites, which are gone back from

    result = lc.run(
        model,
        train=train,
        evaluate=lambda model: 90.0 if seen[-1:] != [2] else 50.0,
        data=data,
        strategy=Collapse(share=1.0),
        steps=3,
        unit="percent",
        out=tmp_path / "run",
    )
    assert seen == [0, 2, 2, 1]
    (name,) = result.record.steps[-1].linear
    scale, shift = checkpoint.lines(tmp_path / "run", 3)[name]
    dense = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2))
    checkpoint.load(tmp_path / "run", 0, dense)
    slopes, constants = fit_lines(dense, [name], data, data[0])[name]
    torch.testing.assert_close(scale, slopes)
    torch.testing.assert_close(shift, constants)


def test_sites_in_front_of_a_smaller_map_go_after_others():
    torch.manual_seed(0)
    sizes = [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3, stride=2), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.ReLU()]
    model = nn.Sequential(
        *sizes, nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 2)
    )
    order = list(Collapse(share=1.0).propose(situation(model, torch.randn(32, 1, 8, 8))).linear)
    assert set(order[:2]) == {"3", "5"}
    assert set(order[2:]) == {"1", "7"}


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([("", True)], []),
        ([("", True), ("abcd", False)], [4]),
        ([("", True), ("abcd", False), ("ab", False)], [4, 2]),
        ([("", True), ("abcd", False), ("ab", True), ("abc", False)], [1]),
        ([("", True), ("ab", True)], []),
    ],
)
def test_what_lost_too_much_since_the_best_step(steps, expected):
    made = taken(*steps)
    assert [len(names) for names in tried_since(made, next(step for step in made if step.best))] == expected


@pytest.mark.parametrize(
    ("lost", "many", "excluded"),
    [([4], 2, 0), ([4, 2], 1, 0), ([4, 2, 1], 1, 1), ([1], 1, 1), ([6], 3, 0), ([3], 1, 0)],
)
def test_trained_once_more_and_then_half_as_many_where_a_step_lost_too_much(lost, many, excluded):
    torch.manual_seed(0)
    found = situation(Residual(), torch.randn(32, 4))
    entropy = found.steps[0].entropy
    order = list(Collapse(share=1.0).propose(found).linear)
    twice = [(order[:count], False) for count in lost for _ in range(2)]
    object.__setattr__(found, "steps", taken(("", True), *twice[:-1], entropy=entropy))
    assert Collapse().propose(found) == Action(rest=True)
    object.__setattr__(found, "steps", taken(("", True), *twice, entropy=entropy))
    action = Collapse().propose(found)
    assert action.back
    assert list(action.linear) == order[excluded:][:many]
    alone = [([name], False) for name in order for _ in range(2)]
    object.__setattr__(found, "steps", taken(("", True), *alone, entropy=entropy))
    assert Collapse().propose(found) is None
