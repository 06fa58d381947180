"""Outputs that no longer depend on the input: seen on samples, named and undone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layercollapse import LayerCollapseError
from layercollapse.entropy.probe import EntropyProbe
from layercollapse.prune import pruner as prune
from layercollapse.prune.pruner import Pruner
from pruning import (
    chain,
    crossed,
    dying,
    measure,
    misled,
    same,
    snapshot,
    spread,
    zeros_hold,
)

pytestmark = pytest.mark.usefixtures("seeded")


def test_a_step_that_leaves_no_path_is_taken_back():
    model, x = crossed(), torch.randn(64, 2)
    with torch.no_grad(), EntropyProbe(model) as probe:
        model(x)
    pruner = Pruner(model, x)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    masks = pruner.state_dict()

    def half(layers, amount):
        return {layer.name: 2 for layer in layers}

    with pytest.raises(LayerCollapseError, match=r"no path of weights leads.* 2 weights of 1, 2 weights of 3"):
        pruner.step(probe.report(), amount=0.5, rule=half)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, masks[name]) for name, value in pruner.state_dict().items())
    assert pruner.density == 1.0
    result = pruner.step(probe.report(), amount=0.5, rule="uniform")  # our own rules keep more instead
    assert set(result.floors) == {"1", "3"}
    with torch.no_grad():
        assert float(model(10 * x).std()) > 0


@pytest.mark.parametrize("rule", ["nepenthe", "egp", "uniform", "global"])
def test_a_step_after_which_the_outputs_are_constant_keeps_more(rule):
    model, x = dying(), torch.randn(8, 4)
    report, twin = measure(model, x), copy.deepcopy(model)
    blind = Pruner(twin, x, samples=x[:1])  # one sample has no spread: paths alone are looked at
    blind.step(report, 0.95, rule)
    assert spread(twin, x) == 0
    pruner = Pruner(model, x)
    result = pruner.step(report, 0.95, rule)
    assert spread(model, x) > 0
    assert result.floors
    assert result.shortfall == round(0.95 * (48 + 3 * 144)) - sum(result.removed.values())
    assert zeros_hold(pruner)


@pytest.mark.parametrize(("floor", "rule"), [(0, "uniform"), (None, lambda layers, amount: {"1": 2})])
def test_what_makes_the_outputs_constant_is_named_and_undone(floor, rule):
    model, x = misled()
    pruner = Pruner(model, x, floor=floor)
    report, before = measure(model, x), snapshot(model, pruner)
    with pytest.raises(LayerCollapseError, match=r"an output is constant over the samples, because of 2 weights of 1;"):
        pruner.step(report, 2, rule)
    assert same(before, snapshot(model, pruner))


def test_a_named_rule_leaves_twice_as_many_weights_then():
    model, x = misled()
    result = Pruner(model, x).step(measure(model, x), 2, "uniform")
    assert (result.removed, result.floors, result.shortfall) == ({"1": 0}, {"1": 4}, 2)


def test_the_layer_to_blame_is_found_by_halves():
    model, x = dying(6), torch.randn(8, 4)
    pruner = Pruner(model, x)
    counts = {f"{i}.weight": 10 for i in (0, 2, 4, 8, 10)} | {"6.weight": 144}
    # By itself, of course, and whatever the order of the others.
    states = pruner._states(measure(model, x))
    with torch.no_grad():
        before = pruner._liveness.varying(model)
        assert pruner._deadening(states, counts, before) == ["7"]
        assert pruner._deadening(states, counts | {"6.weight": 10}, before) == []


def test_training_gives_batch_norms_their_statistics_back():
    """Where the stored ones say that a layer makes next to nothing, the step is no worse for it."""

    class Quiet(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(4, 12), nn.BatchNorm1d(12), nn.Linear(12, 2)

        def forward(self, x):
            return self.b(F.relu(self.norm(self.a(x))))

    model, x = Quiet(), torch.randn(8, 4)
    with torch.no_grad():
        model.norm.running_var.fill_(1e14)
        model.norm.bias.fill_(-0.5)
    assert spread(model, x) == 0
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    pruner = Pruner(model.train(), x)
    report = measure(model.eval(), x)
    model.train()
    result = pruner.step(report, 0.5, lambda layers, amount: {"forward": 24})
    assert result.removed == {"forward": 24}
    before = pruner._liveness.varying(model)
    assert list(before) == [0]
    assert not pruner._liveness.constant(model, before)
    with torch.no_grad():
        model.a.weight.zero_()
    assert pruner._liveness.constant(model, before)
    assert model.training
    assert model.norm.training
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())


def test_an_output_that_was_constant_before_is_left_aside():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.head = nn.Linear(3, 6), nn.Linear(6, 2)
            self.register_buffer("anchors", torch.arange(4.0))

        def forward(self, x):
            return {"anchors": self.anchors.expand(len(x), 4), "y": self.head(F.relu(self.fc(x))), "n": x.argmax(1)}

    model, x = Two(), torch.randn(6, 3)
    pruner = Pruner(nn.DataParallel(model), x)
    assert list(pruner._liveness.varying(model)) == [1]
    assert sum(pruner.step(measure(model, x), 0.5).removed.values()) == 9


def test_samples_follow_the_model_and_must_be_what_it_takes():
    model, x = chain(3, 8, 8, 2), torch.randn(6, 3)
    report = measure(model, x)
    pruner = Pruner(model, x)
    model.double()
    pruner.step(report, 0.1)
    with pytest.raises(LayerCollapseError, match=r"samples: expected a tensor, a tuple of arguments or .* got str"):
        Pruner(model, x.double(), samples="x")
    pruner = Pruner(model, x.double(), samples=torch.randn(6, 5))
    before = snapshot(model, pruner)
    with pytest.raises(LayerCollapseError, match=r"samples: expected what the model can be called with, got \(6, 5\)"):
        pruner.step(report, 0.1)
    assert same(before, snapshot(model, pruner))


def test_no_path_is_mended_by_what_the_samples_show_where_floors_for_all_do_not(monkeypatch):
    monkeypatch.setattr(prune, "_GUARD_DENSITY", 1.0)  # no floors are left to try
    model, x = crossed(), torch.randn(64, 2)
    result = Pruner(model, x).step(measure(model, x), 0.5, "uniform")
    assert len(result.floors) == 1
    assert spread(model, x) > 0
    with pytest.raises(LayerCollapseError, match="no path of weights leads"):  # one sample shows nothing
        Pruner(crossed(), x[:1]).step(measure(crossed(), x), 0.5, "uniform")
