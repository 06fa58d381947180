"""The pruner: what it removes, what it refuses, and that pruned weights stay at zero."""

import copy
import functools
import io
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layercollapse import LayerCollapseError
from layercollapse.entropy.probe import EntropyProbe, EntropyReport, LayerEntropy
from layercollapse.prune import pruner as prune
from layercollapse.prune.pruner import Pruner

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Residual(nn.Module):
    """Stem, a block with a projection, a block with an identity, and an output layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(8, 5)
        self.conv1, self.conv2, self.skip = (
            nn.Conv2d(4, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(4, 8, 1),
        )
        self.conv3, self.conv4 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.conv2(F.relu(self.conv1(x))) + self.skip(x))
        x = F.relu(self.conv4(F.relu(self.conv3(x))) + x)
        return self.fc(x.mean((2, 3)))


SITES = {
    "forward": ("stem.weight",),
    "forward#2": ("conv1.weight",),
    "forward#3": ("conv2.weight", "skip.weight"),
    "forward#4": ("conv3.weight",),
    "forward#5": ("conv4.weight",),
}


@functools.cache
def _template():
    return Pruner(Residual(), image())


def residual(device="cpu"):
    """A pruner and its model; the capture, which takes a second, is made once."""
    pruner = copy.deepcopy(_template())
    pruner.model.to(device)
    return pruner.model, pruner


def chain(*widths):
    layers = []
    for i, o in itertools.pairwise(widths):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def measure(model, *inputs):
    with torch.no_grad(), EntropyProbe(model) as probe:
        model(*inputs)
    return probe.report()


def image(device="cpu"):
    return torch.randn(6, 3, 8, 8, device=device)


def report_with(model, x, **positive):
    """A report of the model's sites with chosen shares of positive values, of 100."""
    rows = lambda layer: [[100 - positive.get(layer.name, 50), 0, positive.get(layer.name, 50), 0]] * layer.neurons  # noqa: E731
    return EntropyReport(
        [LayerEntropy(x.name, x.kind, torch.tensor(rows(x), dtype=torch.int64)) for x in measure(model, x)]
    )


def snapshot(model, pruner):
    return {k: v.clone() for k, v in model.state_dict().items()}, {k: v.clone() for k, v in pruner.state_dict().items()}


def same(a, b):
    return all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True))


def zeros_hold(pruner):
    weights = dict(pruner.model.named_parameters())
    return all((weights[name][~mask] == 0).all() for name, mask in pruner.masks().items())


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


# --- staying at zero --------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, 0.01),
    ],
)
def test_attach_keeps_zeros_through_an_optimizer(device, optimizer):
    (model, pruner), x = residual(device), image(device)
    optimizer = optimizer(model.parameters())

    def train(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    train(3)  # momentum from before the pruning
    pruner.step(measure(model, x), 0.5, "uniform")
    with pruner.attach(optimizer):
        train(3)
        assert zeros_hold(pruner)
    handle = pruner.attach(optimizer)
    train(1)
    assert zeros_hold(pruner)
    handle.remove()
    train(1)
    assert not zeros_hold(pruner)
    pruner.apply()
    assert zeros_hold(pruner)


def test_after_to_and_after_a_deep_copy():
    (model, pruner), x = residual(), image()
    pruner.step(measure(model, x), 0.5, "uniform")
    before = snapshot(model, pruner)
    twin = copy.deepcopy(pruner)
    other_model, other = copy.deepcopy((model, pruner))
    assert other.model is other_model
    for copied in (twin, other):
        copied.model.double()
        copied.step(measure(copied.model, x.double()), 0.5, "uniform")
        assert zeros_hold(copied)
        assert copied.density == pytest.approx(0.25, abs=1e-3)
    assert same(before, snapshot(model, pruner))
    model.to(torch.bfloat16, memory_format=torch.channels_last)
    pruner.step(measure(model, x.bfloat16()), 0.5, "uniform")
    assert zeros_hold(pruner)


def test_wrapped_models_have_the_same_names():
    model = Residual()
    assert Pruner(torch.compile(model, backend="eager"), image()).layers == SITES
    assert Pruner(nn.DataParallel(model), image()).layers == SITES


# --- state ------------------------------------------------------------------------------------------------


def test_state_dict_round_trip():
    (model, pruner), x = residual(), image()
    other = copy.deepcopy(pruner)
    fresh = other.model
    pruner.step(measure(model, x), 0.5)
    buffer = io.BytesIO()
    torch.save(pruner.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert same(snapshot(model, pruner), snapshot(fresh, other))
    assert other.density == pruner.density
    other.step(measure(fresh, x), 0.5)  # the loaded masks are its own
    assert other.density < pruner.density


def change(**entries):
    return lambda state: state | entries


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (list, "expected a dict of packed masks"),
        (lambda state: {k: v for k, v in state.items() if k != "skip.weight"}, "got no skip.weight"),
        (change(other=torch.zeros(1)), "got unknown other"),
        (
            lambda s: s | {"stem.weight": s["stem.weight"][:-1]},
            r"'stem.weight': expected uint8 \(14,\) .* got .*\(13,\)",
        ),
        (lambda s: s | {"stem.weight": s["stem.weight"].float()}, "expected uint8.*got torch.float32"),
        (lambda s: s | {"stem.weight": None}, "expected uint8.*got NoneType"),
        (lambda s: s | {"stem.weight": s["stem.weight"] | 255}, "no bits beyond its 108 weights"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(corrupt, message):
    (model, pruner), x = residual(), image()
    pruner.step(measure(model, x), 0.5)
    before = snapshot(model, pruner)
    with pytest.raises(LayerCollapseError, match=message):
        pruner.load_state_dict(corrupt({k: torch.zeros_like(v) for k, v in pruner.state_dict().items()}))
    assert same(before, snapshot(model, pruner))


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


def test_after_an_optimizer_step_nothing_is_asked_of_the_data():
    (model, pruner), x = residual(), image()
    report = measure(model, x)
    pruner.step(report, 0.5)
    mask = pruner._masks.mask("conv3.weight")
    with torch.no_grad():
        model.conv3.weight.fill_(float("nan"))
    pruner.apply()
    assert torch.equal(model.conv3.weight.isnan(), mask)
    assert not model.conv3.weight[~mask].any()
    with pytest.raises(LayerCollapseError, match=r"weights: expected finite numbers.*in conv3\.weight"):
        pruner.step(report, 0.5)
    nothing = {name: torch.zeros_like(packed) for name, packed in pruner.state_dict().items()}
    pruner.load_state_dict(nothing)
    assert not model.conv3.weight.any()


def test_a_step_zeroes_what_an_optimizer_revived():
    (model, pruner), x = residual(), image()
    report = measure(model, x)
    pruner.step(report, 0.5, "uniform")
    with torch.no_grad():
        model.conv3.weight.add_(1)
    assert not zeros_hold(pruner)
    pruner.step(report, 0.5, lambda layers, amount: {})
    assert zeros_hold(pruner)


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
    with pytest.raises(LayerCollapseError, match=r"optimizer: expected a torch.optim.Optimizer, got list"):
        residual()[1].attach([])
    with pytest.raises(LayerCollapseError, match="expected weights that feed a rectifier"):
        Pruner(nn.Sequential(nn.ReLU(), nn.Linear(3, 3)), torch.randn(2, 3))


def crossed() -> nn.Module:
    """Half of the weights can go so that every layer keeps some and no path is left."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    model[0].weight.data = torch.tensor([[5.0, 5.0], [0.1, 0.1]])
    model[2].weight.data = torch.tensor([[0.1, 5.0], [0.1, 5.0]])
    for layer in (model[0], model[2]):
        layer.bias.data.fill_(0.5)
    return model


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


# --- outputs that go dead ---------------------------------------------------------------------------------


def dying(layers=4, norm=False, bias=-0.05):
    """Paths of weights lead through it when few are left, through neurons that are off then."""
    made = []
    for i, o in itertools.pairwise([4] + [12] * layers):
        made += [nn.Linear(i, o), *([nn.BatchNorm1d(o)] if norm else []), nn.ReLU()]
        linear = made[-3 if norm else -2]
        nn.init.kaiming_normal_(linear.weight)
        nn.init.constant_(linear.bias, bias)
    return nn.Sequential(*made, nn.Linear(12, 3))


def spread(model, x):
    with torch.no_grad():
        y = model.eval()(x)
    return float((y.amax(0) - y.amin(0)).max())


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


def misled():
    """For positive inputs, the large weights make a neuron that is always off, the small ones one that is on."""
    model, x = chain(2, 2, 1), 0.5 + torch.rand(8, 2)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-9.0, -9.0], [1.0, 1.0]]))
        model[0].bias.zero_()
    return model, x


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


def test_no_path_is_mended_by_what_the_samples_show_where_floors_for_all_do_not(monkeypatch):
    monkeypatch.setattr(prune, "_GUARD_DENSITY", 1.0)  # no floors are left to try
    model, x = crossed(), torch.randn(64, 2)
    result = Pruner(model, x).step(measure(model, x), 0.5, "uniform")
    assert len(result.floors) == 1
    assert spread(model, x) > 0
    with pytest.raises(LayerCollapseError, match="no path of weights leads"):  # one sample shows nothing
        Pruner(crossed(), x[:1]).step(measure(crossed(), x), 0.5, "uniform")
