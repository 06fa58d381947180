"""Names of strategies, those that only draw or prune, and several together."""

import pytest
import torch
from torch import nn

import layercollapse as lc
from layercollapse import LayerCollapseError
from layercollapse.graph.linear_sites import LinearSite
from layercollapse.strategies import STRATEGIES, Action, Strategy, strategy_of, with_lines
from layercollapse.strategies.base import Together
from situations import network, situation


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_acts_on_a_network_and_ends_when_nothing_is_left(name):
    torch.manual_seed(0)
    model, x = network(), torch.randn(16, 4)
    found = situation(model, x)
    strategy, seen = strategy_of(name), set()
    for _ in range(8):
        action = strategy.propose(found)
        if action is None:
            break
        if action.prune is not None:
            assert action.prune == {"amount": 0.5, "rule": "nepenthe", "max_layer_share": 1.0}
            return
        assert action.linear
        assert not seen & set(action.linear)
        seen |= set(action.linear)
        found.pruner.linearize(with_lines(action.linear, model, found.pruner, [x]))
        found = situation(model, x, found.pruner, steps=[(0, True), (len(seen), True)])
    assert action is None
    assert seen == {"1", "4", "7"} if name != "tlc" else seen == {"4", "7"}  # no batch norm before the first


def test_random_is_drawn_by_the_seed_and_the_step():
    model, x = network(), torch.randn(16, 4)
    drawn = {
        (seed, steps): [
            next(iter(strategy_of("random").propose(situation(model, x, steps=[(0, True)] * steps, seed=seed)).linear))
            for _ in range(2)
        ]
        for seed in range(6)
        for steps in (1, 2)
    }
    assert all(one == two for one, two in drawn.values())
    assert {one for one, _ in drawn.values()} == {"1", "4", "7"}


class Fixed(Strategy):
    def __init__(self, action, patience=2):
        self.action, self.patience = action, patience

    def propose(self, situation):
        return self.action


def test_together():
    both = Together([Fixed(Action({"a": "identity"}, {"amount": 1}), 3), Fixed(Action({"b": 0.5}, {"amount": 2}))])
    assert both.propose(None) == Action({"a": "identity", "b": 0.5}, {"amount": 2})
    assert both.patience == 3
    assert Together([Fixed(None), Fixed(Action(back=True))]).propose(None).back
    assert Together([Fixed(None), Fixed(None)]).propose(None) is None
    assert [type(part).__name__ for part in strategy_of("collapse+prune").parts] == ["Collapse", "Pruning"]


@pytest.mark.parametrize("name", ["", "other", "easier+", "easier+other", None, 3])
def test_an_unknown_name(name):
    with pytest.raises(LayerCollapseError, match="strategy: expected"):
        strategy_of(name)


@pytest.mark.parametrize("name", ["easier", "tlc", "collapse", "collapse+prune", Fixed(Action({"4": "zero"}))])
def test_a_run_makes_sites_linear_goes_on_where_it_was_and_is_exact(tmp_path, name):
    torch.manual_seed(0)
    x, y = torch.randn(64, 4), torch.randint(3, (64,))

    def train(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    def accuracy(model):
        return 100 * float((model(x).argmax(1) == y).float().mean())

    arguments = {
        "train": train,
        "evaluate": accuracy,
        "data": [x],
        "strategy": name,
        "max_drop": 100,
        "unit": "percent",
    }

    def start():
        torch.manual_seed(1)
        return network()

    whole = lc.run(start(), **arguments, steps=2, out=tmp_path / "whole")
    lc.run(start(), **arguments, steps=1, out=tmp_path / "parts")
    parts = lc.run(start(), **arguments, steps=2, out=tmp_path / "parts", resume=True)
    linear = [step.linear for step in whole.record.steps]
    assert linear[0] == []
    assert linear[1]
    assert [step.linear for step in parts.record.steps] == linear
    assert [step.top1_validation for step in parts.record.steps] == [s.top1_validation for s in whole.record.steps]
    sites = {site.name: site for site in whole.collapse.sites}
    assert {sites[n].guarantee for n in whole.record.steps[whole.record.chosen].linear} == {"exact"}
    torch.testing.assert_close(whole.model(x), parts.model(x))


def test_a_step_that_loses_too_much_is_taken_back(tmp_path):
    torch.manual_seed(0)

    def accuracy(model):
        return 90.0 if sum(isinstance(module, LinearSite) for module in model.modules()) < 2 else 80.0

    arguments = {"train": lambda model: None, "evaluate": accuracy, "data": [torch.randn(32, 4)], "unit": "percent"}
    result = lc.run(network(), **arguments, strategy="collapse", steps=5, max_drop=0.5, out=tmp_path / "run")
    assert [len(step.linear) for step in result.record.steps] == [0, 3, 3, 1, 2, 2]
    assert result.record.chosen == 3
    assert len(result.collapse.collapsed) == 1
