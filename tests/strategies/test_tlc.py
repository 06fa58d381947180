"""TLC by hand: the table of Φ(β / |γ|), and the site of least divergence on a network that is computed directly."""

import math

import pytest
import torch

from layercollapse.strategies.tlc import TLC, divergence, shares_on
from situations import network, situation


@pytest.mark.parametrize(
    ("gamma", "beta", "share"),
    [
        (1.0, 0.0, 0.5),
        (1.0, 1.0, 0.8413447460685429),
        (2.0, -2.0, 0.15865525393145707),
        (-0.5, 1.0, 0.9772498680518208),
        (0.0, 0.1, 1.0),
        (0.0, -0.1, 0.0),
        (0.0, 0.0, 0.5),
    ],
)
def test_share_of_a_neuron(gamma, beta, share):
    model = network()
    with torch.no_grad():
        model[3].weight.fill_(gamma)
        model[3].bias.fill_(beta)
    found = situation(model, torch.randn(16, 4))
    capture = found.pruner.capture
    assert shares_on(model, capture, capture.site("4")).tolist() == pytest.approx([share] * 5, abs=1e-12)
    assert shares_on(model, capture, capture.site("1")) is None


def test_divergence():
    p, q = torch.tensor([[0.5, 0.5], [0.25, 0.75]]), torch.tensor([[0.25, 0.75], [0.25, 0.75]])
    expected = (0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2
    assert divergence(p.log(), q.log()) == pytest.approx(expected)
    assert divergence(p.log() + 7, p.log()) == pytest.approx(0, abs=1e-7)


def test_the_site_of_least_divergence_against_a_direct_computation():
    torch.manual_seed(3)
    model, x = network(), torch.randn(64, 4)
    with torch.no_grad():
        for norm in (model[3], model[6]):
            norm.bias.normal_()
            norm.weight.normal_()
    found = situation(model, x)
    with torch.no_grad():
        h = model[:4](x)
        as_it_is = model[4:](h)
        first = model[5:](h * (model[3].bias > 0))
        second = model[8:](model[:7](x) * (model[6].bias > 0))
    p = as_it_is.double().softmax(1)

    def kl(outputs):
        return float((p * (p.log() - outputs.double().softmax(1).log())).sum(1).mean())

    action = TLC().propose(found)
    assert kl(first) != kl(second)
    name, norm = ("4", model[3]) if kl(first) < kl(second) else ("7", model[6])
    assert set(action.linear) == {name}
    assert action.linear[name].tolist() == (norm.bias > 0).double().tolist()
    assert found.pruner.linear == ()
