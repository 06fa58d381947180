"""`linearize`: a site of a live model becomes a line, everywhere it is called, and comes back."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import layercollapse as lc
from layercollapse import LayerCollapseError
from rectifier_zoo import NAMES, X, by_hand, zoo

SLOPES = torch.tensor([1.0, 0.0, -0.5, 2.0])
BECOMES = {
    "identity": ("identity", lambda x: x),
    "zero": ("zero", lambda x: 0 * x),
    "number": (0.25, lambda x: 0.25 * x),
    "slopes": (SLOPES, lambda x: SLOPES.view(-1, 1, 1) * x),
    "slopes and constants": ((SLOPES, SLOPES + 1), lambda x: SLOPES.view(-1, 1, 1) * x + (SLOPES + 1).view(-1, 1, 1)),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", BECOMES)
def test_every_call_becomes_what_is_asked_for_and_comes_back(name, how):
    model, twin = zoo(), zoo()
    before, keys = model(X), set(model.state_dict())
    becomes, function = BECOMES[how]
    with lc.linearize(model, {name: becomes}, X):
        expected = by_hand(twin, {name: function}, X)
        torch.testing.assert_close(model(X), expected)
        model(X).square().sum().backward()
        by_hand(twin, {name: function}, X).square().sum().backward()
        for (key, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
            if key != "prelu.weight" or name != "prelu":
                torch.testing.assert_close(one.grad, other.grad)
        assert set(model.state_dict()) == keys
    assert torch.equal(model(X), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_probe_capture_and_collapse_see_it_under_its_name(name):
    model = zoo().eval()
    sites = [site.name for site in lc.capture(model, X).sites]
    assert sites == NAMES
    with lc.linearize(model, {name: "identity"}, X):
        captured = lc.capture(model, X)
        assert [site.name for site in captured.sites] == NAMES
        assert [site.name for site in captured.sites if site.kind == "linear"] == [name]
        with lc.EntropyProbe(model) as probe:
            model(X)
        report = probe.report()
        assert [layer.name for layer in report] == NAMES
        assert report[name].kind == "linear"
        assert report[name].mean == 0
        assert report[name].collapsible
        result = lc.collapse(model, X, data=[X])
        site = next(site for site in result.sites if site.name == name)
        assert (site.status, site.guarantee) == ("collapsed", "exact")
        torch.testing.assert_close(result.model(X), model(X), rtol=1e-4, atol=1e-5)


def test_all_sites_gone_leave_one_affine_map():
    model = zoo().eval()
    lc.linearize(model, dict.fromkeys(NAMES, "identity"), X)
    a, b = torch.randn(2, 5, 3, 6, 6)
    zero = model(0 * a)
    torch.testing.assert_close(model(a + b) - zero, model(a) + model(b) - 2 * zero, rtol=1e-4, atol=1e-5)
    assert len(lc.collapse(model, X, data=[X]).collapsed) == 7


def test_the_piece_that_most_values_are_in():
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU6(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0], [1.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 0.0, 9.0]))
    x = torch.tensor([[1.0], [2.0], [-1.0]])  # of neurons: on, off, saturated, each two or three times
    with lc.EntropyProbe(model) as probe:
        model(x)
    with lc.linearize(model, {"1": probe.report()["1"]}, x):
        z = model[0](x)
        expected = model[2](torch.stack([z[:, 0], 0 * z[:, 1], 0 * z[:, 2] + 6], 1))
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ({}, "sites: expected a mapping"),
        ("own", "sites: expected a mapping"),
        ({"other": "identity"}, "'other' is not a rectifier site"),
        ({"own": "one"}, "sites: expected 'identity'"),
        ({"own": torch.ones(5)}, "sites: expected 'identity'"),
        ({"own": (torch.ones(4), torch.ones(5))}, "scales and shifts of 4 neurons"),
        ({"own": float("nan")}, "finite"),
        ({"own": True}, "sites: expected 'identity'"),
    ],
)
def test_bad_input_leaves_the_model_as_it_was(sites, message):
    model = zoo()
    with pytest.raises(LayerCollapseError, match=message):
        lc.linearize(model, sites, X)
    assert type(model.own) is nn.ReLU
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("call", [lambda x: F.relu(x, True), lambda x: F.leaky_relu(x, 0.1, True), torch.relu_])
def test_what_reads_the_input_of_a_call_in_place_sees_the_line(call):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            x = self.layer(x)
            call(x)
            return x

    model, x = InPlace(), torch.randn(2, 3)
    with lc.linearize(model, {"forward": 0.5}, x):
        torch.testing.assert_close(model(x), 0.5 * model.layer(x))


def test_one_that_is_written_out_is_refused():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            x = self.layer(x)
            return x * (x > 0)

    with pytest.raises(LayerCollapseError, match="writes rectifiers out of several operations"):
        lc.linearize(Written(), {"forward": "identity"}, torch.randn(2, 3))


class Gelu(nn.Module):
    """As transformers write it."""

    def forward(self, x):
        return 0.5 * x * (1.0 + torch.tanh(0.7978845608028654 * (x + 0.044715 * torch.pow(x, 3.0))))


def test_a_module_that_writes_one_out_and_does_nothing_else():
    model, x = nn.Sequential(nn.Linear(4, 8), Gelu(), nn.Linear(8, 3)).eval(), torch.randn(5, 4)
    assert [site.kind for site in lc.capture(model, x).sites] == ["gelu"]
    before = model(x)
    with lc.linearize(model, {"1": 0.5}, x):
        torch.testing.assert_close(model(x), model[2](0.5 * model[0](x)))
        assert [site.name for site in lc.capture(model, x).sites] == ["1"]
        assert lc.collapse(model, x, data=[x]).after.depth == 1
    assert torch.equal(model(x), before)


def test_a_pruner_keeps_them_in_its_state():
    model = zoo()
    pruner = lc.Pruner(model, X, samples=X)
    pruner.linearize({"own": "identity", "shared": SLOPES})
    pruner.linearize({"forward#2": 0.5})
    assert pruner.linear == ("own", "shared", "forward#2")
    assert set(pruner.layers) == set(NAMES) - {"own", "shared", "forward#2"}
    assert pruner.unfed["own"] == "it has been made linear"
    with lc.EntropyProbe(model) as probe:
        model(X)
    pruner.step(probe.report(), amount=0.3)
    state, expected = pruner.state_dict(), model(X)
    twin = zoo()
    twin.load_state_dict(model.state_dict())
    other = lc.Pruner(twin, X, keep_zeros=True)
    other.load_state_dict(state)
    assert torch.equal(twin(X), expected)
    assert other.linear == pruner.linear
    copied = copy.deepcopy(pruner)
    pruner.load_state_dict({name: part for name, part in state.items() if not name.endswith(".line")})
    assert pruner.linear == ()
    assert not torch.equal(model(X), expected)
    assert torch.equal(copied.model(X), expected)
