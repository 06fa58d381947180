"""The pruner: what it removes, what it guards, and what it refuses."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layercollapse import LayerCollapseError
from layercollapse.entropy.probe import EntropyReport, LayerEntropy
from layercollapse.prune.pruner import Pruner
from pruning import (
    SITES,
    Residual,
    chain,
    image,
    measure,
    report_with,
    residual,
    same,
    snapshot,
)

pytestmark = pytest.mark.usefixtures("seeded")

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


# --- what is removed --------------------------------------------------------------------------------------


def test_layers_are_sites_with_their_feeding_weights():
    assert residual()[1].layers == SITES


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rule", ["nepenthe", "egp", "uniform", "global"])
def test_the_smallest_weights_of_a_site_go(device, rule):
    model, pruner = residual(device)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    total = sum(before[name].numel() for names in SITES.values() for name in names)
    result = pruner.step(measure(model, image(device)), 0.3, rule)
    masks = pruner.masks()
    assert sum(result.removed.values()) == sum(result.removed_by_weight.values()) == round(0.3 * total)
    assert result.density == pruner.density == pytest.approx(1 - round(0.3 * total) / total)
    for site, names in SITES.items():
        gone = torch.cat([before[name].abs()[~masks[name]] for name in names])
        left = torch.cat([before[name].abs()[masks[name]] for name in names])
        assert len(gone) == result.removed[site]
        assert not len(gone) or not len(left) or gone.max() <= left.min()
    if rule == "global":
        gone = torch.cat([before[name].abs()[~mask] for name, mask in masks.items()])
        left = torch.cat([before[name].abs()[mask] for name, mask in masks.items()])
        assert gone.max() <= left.min()
    for name, weight in model.named_parameters():
        expected = before[name] * masks[name] if name in masks else before[name]
        assert torch.equal(weight, expected)
        assert weight.requires_grad
        assert weight.grad_fn is None


def test_steps_are_fractions_of_what_is_left():
    (model, pruner), x = residual(), image()
    report = measure(model, x)
    densities = [pruner.step(report, 0.5, "uniform").density for _ in range(3)]
    assert densities == pytest.approx([0.5, 0.25, 0.125], abs=1e-3)
    assert pruner.step(report, 7, "uniform").density == pytest.approx(densities[-1] - 7 / 2156, abs=1e-3)


def test_zeros_at_the_start_count_as_pruned_unless_kept():
    model, x = Residual(), image()
    with torch.no_grad():
        model.conv3.weight[:2] = 0
    assert Pruner(model, x).masks()["conv3.weight"][:2].sum() == 0
    assert Pruner(model, x, keep_zeros=True).density == 1


def test_ignore():
    model, x = Residual(), image()
    everything = set(SITES)
    for ignore, gone in [
        ("conv1", {"forward#2"}),
        (["conv1.weight", "stem"], {"forward", "forward#2"}),
        (["conv[34]"], {"forward#4", "forward#5"}),
        (["re:conv[34]"], {"forward#4", "forward#5"}),
        (["forward#5"], {"forward#5"}),
        (["nothing*"], set()),
    ]:
        assert set(Pruner(model, x, ignore=ignore).layers) == everything - gone
    assert Pruner(model, x, ignore="skip").layers["forward#3"] == ("conv2.weight",)
    nested = nn.Sequential(chain(3, 4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    assert set(Pruner(nested, torch.randn(2, 3), ignore="0").layers) == {"3"}


def test_a_shared_weight_is_pruned_once_and_an_output_layer_never():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.out = (nn.Linear(4, 4) for _ in range(4))
            self.b.weight, self.out.weight = self.a.weight, self.c.weight

        def forward(self, x):
            return self.out(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))))

    model, x = Tied(), torch.randn(8, 4)
    pruner = Pruner(model, x)
    assert pruner.layers == {"forward": ("a.weight",)}
    result = pruner.step(measure(model, x), 1.0)
    # One weight would do for a layer, but not for the same one twice: it must lead back to where it came from.
    floor = result.floors["forward"]
    assert result.removed == {"forward": 16 - floor}
    kept = model.a.weight != 0
    assert bool((kept.float() @ kept.float()).any())
    assert floor <= 6


def test_wrapped_models_have_the_same_names():
    model = Residual()
    assert Pruner(torch.compile(model, backend="eager"), image()).layers == SITES
    assert Pruner(nn.DataParallel(model), image()).layers == SITES


# --- guards -----------------------------------------------------------------------------------------------


def test_the_guard_keeps_what_the_output_needs():
    model, x = chain(3, 20, 20, 20, 2), torch.randn(50, 3)
    pruner = Pruner(model, x)
    result = pruner.step(measure(model, x), 1.0)
    assert result.floors == {"1": 1, "3": 4, "5": 4}  # 1 % of 60, 400 and 400 weights
    assert sum(result.removed.values()) == 860 - 9
    assert model(x).std(0).max() > 0 or not model(x).isnan().any()


def test_a_residual_branch_may_die():
    (model, pruner), x = residual(), image()
    result = pruner.step(report_with(model, x, **{"forward#4": 1}), 0.5)
    assert result.removed["forward#4"] == 576
    assert result.floors == {}
    assert model.conv3.weight.abs().sum() == 0


@pytest.mark.parametrize("rule", ["nepenthe", "egp", "uniform", "global"])
@pytest.mark.parametrize(("low", "high"), [("forward", "forward#2"), ("forward#2", "forward")])
def test_of_two_branches_that_must_not_both_die_the_one_of_lower_entropy_does(rule, low, high):
    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Linear(3, 10), nn.Linear(3, 10), nn.Linear(10, 2)
            for layer in (self.a, self.b):
                nn.init.ones_(layer.bias)  # the neuron of the last weight is on for some samples

        def forward(self, x):
            return self.out(F.relu(self.a(x)) + F.relu(self.b(x)))

    model, x = Parallel(), torch.randn(5, 3)
    result = Pruner(model, x).step(report_with(model, x, **{low: 10, high: 30}), 1.0, rule)
    assert result.removed == {low: 30, high: 29}
    assert result.floors == {high: 1}


def test_explicit_floors():
    model, x = Residual(), image()
    report = measure(model, x)
    result = Pruner(copy.deepcopy(model), x, floor=10).step(report, 1.0)
    assert sum(result.removed.values()) == 2156 - 50
    result = Pruner(copy.deepcopy(model), x, floor={"forward#5": 20}).step(report, 1.0)
    assert result.removed["forward#5"] == 576 - 20
    result = Pruner(copy.deepcopy(model), x, min_density=0.1).step(report, 1.0)
    assert result.removed["forward"] == 108 - 11
    pruner = Pruner(model, x, floor=0)
    before = snapshot(model, pruner)
    with pytest.raises(LayerCollapseError, match=r"output still depends on the input.*last weights of forward"):
        pruner.step(report, 1.0)
    assert same(before, snapshot(model, pruner))


def test_a_rule_of_the_user_is_taken_at_its_word():
    (model, pruner), x = residual(), image()
    result = pruner.step(measure(model, x), 0.5, lambda layers, amount: {"forward#3": 100})
    assert result.removed == dict.fromkeys(SITES, 0) | {"forward#3": 100}
    before = snapshot(model, pruner)
    for answer, message in [
        ({"forward": 108}, "last weights of forward;"),
        ({"forward#9": 1}, "unknown forward#9"),
        ({"forward#3": 509}, "between 0 and 508 weights of 'forward#3'.*got 509"),
        ({"forward": -1}, "got -1"),
    ]:
        with pytest.raises(LayerCollapseError, match=message):
            pruner.step(measure(model, x), 0.5, lambda layers, amount, answer=answer: answer)
        assert same(before, snapshot(model, pruner))


def test_a_model_whose_output_is_constant_already():
    model, x = chain(3, 4, 4, 2), torch.randn(9, 3)
    with torch.no_grad():
        model[0].weight.zero_()
    with pytest.raises(LayerCollapseError, match=r"all weights of 0\.weight are pruned already"):
        Pruner(model, x).step(measure(model, x), 0.5, "uniform")


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value):
    (model, pruner), x = residual(), image()
    report = measure(model, x)
    with torch.no_grad():
        model.conv3.weight[0, 0, 0, 0] = value
    masks, weights = pruner.state_dict(), {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(LayerCollapseError, match=r"weights: expected finite numbers.*in conv3\.weight"):
        pruner.step(report)
    assert same([masks], [pruner.state_dict()])
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=0, equal_nan=True)


def test_reports_of_another_model():
    (model, pruner), x = residual(), image()
    report = measure(model, x)
    before = snapshot(model, pruner)
    layers = report.layers
    wide = LayerEntropy("forward", "relu", torch.zeros(9, 4, dtype=torch.int64))
    leaky = LayerEntropy("forward", "leaky_relu", layers[0].counts)
    for bad, message in [
        (EntropyReport(layers[1:]), "'forward' is relu with 4 neurons in it, no such site in the report"),
        (
            EntropyReport([*layers, LayerEntropy("x", "relu", layers[0].counts)]),
            "'x' is no such site in it, relu with 4",
        ),
        (EntropyReport([wide, *layers[1:]]), "relu with 4 neurons in it, relu with 9 neurons in the report"),
        (EntropyReport([leaky, *layers[1:]]), "leaky_relu with 4 neurons in the report"),
        ({"forward": 0.5}, "report: expected an EntropyReport, got dict"),
    ]:
        with pytest.raises(LayerCollapseError, match=message):
            pruner.step(bad)
    for arguments in [{"amount": 0.0}, {"amount": 2.5}, {"rule": "magnitude"}, {"rule": 3}]:
        with pytest.raises(LayerCollapseError, match=next(iter(arguments))):
            pruner.step(report, **arguments)
    assert same(before, snapshot(model, pruner))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ignore": "conv9"}, "ignore: expected a module, weight or site of the model, got 'conv9'"),
        ({"ignore": [""]}, "ignore: .*got ''"),
        ({"ignore": [3]}, "ignore: expected names or patterns, got int"),
        ({"ignore": "re:("}, "ignore: expected a regular expression"),
        ({"ignore": "*"}, "expected weights that feed a rectifier and are not ignored"),
        ({"floor": -1}, "floor: expected an int of at least 0"),
        ({"floor": 0.5}, "floor: expected an int of at least 0"),
        ({"floor": {"nowhere": 1}}, "floor: expected pruned sites .*got 'nowhere'"),
        ({"min_density": 1.5}, "min_density: expected a fraction"),
        ({"min_density": float("nan")}, "min_density: expected a fraction"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(LayerCollapseError, match=message):
        Pruner(Residual(), image(), **arguments)


def test_nothing_to_attach_to_and_nothing_to_prune():
    with pytest.raises(LayerCollapseError, match=r"optimizer: expected one with a step method, got list"):
        residual()[1].attach([])
    with pytest.raises(LayerCollapseError, match="expected weights that feed a rectifier"):
        Pruner(nn.Sequential(nn.ReLU(), nn.Linear(3, 3)), torch.randn(2, 3))


# --- a cap per layer --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["nepenthe", "egp", "uniform", "global"])
def test_no_layer_loses_more_than_its_share(rule):
    (model, pruner), x = residual(), image()
    report = report_with(model, x, **{"forward#4": 1})
    result = pruner.step(report, 0.5, rule, max_layer_share=0.6)
    assert sum(result.removed.values()) == 1078 == round(0.5 * 2156)
    kept = {"forward": 108, "forward#2": 288, "forward#3": 608, "forward#4": 576, "forward#5": 576}
    assert all(count <= 0.6 * kept[site] for site, count in result.removed.items())
    assert (result.emptied, result.floors, result.shortfall) == ((), {}, 0)
    assert result.removed["forward#4"] == 345 or rule in ("uniform", "global")


def test_a_share_that_is_too_small_for_the_amount_falls_short_and_says_so():
    (model, pruner), x = residual(), image()
    result = pruner.step(measure(model, x), 0.5, max_layer_share=0.25)
    assert result.removed == {"forward": 27, "forward#2": 72, "forward#3": 152, "forward#4": 144, "forward#5": 144}
    assert result.shortfall == 1078 - 539


def test_emptied_sites_are_named():
    (model, pruner), x = residual(), image()
    result = pruner.step(report_with(model, x, **{"forward#4": 1}), 0.5)
    assert result.emptied == ("forward#4",)
    for share in (0.0, 1.5, True, float("nan"), "0.5"):
        with pytest.raises(LayerCollapseError, match="max_layer_share: expected a fraction in"):
            pruner.step(measure(model, x), 0.5, max_layer_share=share)
