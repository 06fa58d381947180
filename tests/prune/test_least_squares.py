"""Lines by least squares, against NumPy's fit of every neuron."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import layercollapse as lc
from layercollapse import LayerCollapseError
from layercollapse.prune.least_squares import Moments, fit_lines
from networks import Model


class WrittenGELU(nn.Module):
    def forward(self, x):
        return 0.5 * x * (1.0 + torch.tanh(0.7978845608028654 * (x + 0.044715 * torch.pow(x, 3.0))))


def twice(m, x):
    return m.c(F.silu(m.b(torch.relu(m.a(x)))))


MODELS = {
    "a module": (lambda: nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)), ["1"]),
    "in place": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1)), ["1"]),
    "functions": (
        lambda: Model(twice, a=nn.Linear(3, 4), b=nn.Linear(4, 5), c=nn.Linear(5, 2)),
        ["forward", "forward#2"],
    ),
    "a parameter": (lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 2)), ["1"]),
    "written out": (lambda: nn.Sequential(nn.Linear(3, 4), WrittenGELU(), nn.Linear(4, 2)), ["1"]),
}
FUNCTIONS = {"a module": F.gelu, "in place": F.relu, "written out": lambda x: F.gelu(x, approximate="tanh")}


def inputs(name: str) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(20, 3, 4, 4) if name == "in place" else torch.randn(20, 3) for _ in range(3)]


@pytest.mark.parametrize("name", MODELS)
def test_lines_are_those_of_a_fit_of_every_neuron(name: str) -> None:
    torch.manual_seed(0)
    build, sites = MODELS[name]
    model, data = build().train(), inputs(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    lines = fit_lines(model, sites, data, data[0][:2])
    assert list(lines) == sites
    assert model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    x = torch.cat(data)
    if name == "functions":
        first = model.a(x)
        second = model.b(F.relu(first))
        pairs = [(first, F.relu(first)), (second, F.silu(second))]
    else:
        seen = model[0](x)
        pairs = [(seen, FUNCTIONS.get(name, model[1])(seen.clone()))]
    for site, pair in zip(sites, pairs, strict=True):
        slopes, constants = lines[site]
        before, after = (value.detach().movedim(1, -1).flatten(0, -2).double().numpy() for value in pair)
        for neuron in range(before.shape[1]):
            slope, constant = np.polyfit(before[:, neuron], after[:, neuron], 1)
            assert slopes[neuron].item() == pytest.approx(slope, abs=1e-5)
            assert constants[neuron].item() == pytest.approx(constant, abs=1e-5)


def test_the_model_computes_as_before_and_takes_the_lines() -> None:
    torch.manual_seed(0)
    model, data = MODELS["functions"][0](), inputs("functions")
    outputs = model(data[0])
    lines = fit_lines(model, ["forward#2"], data, data[0])
    assert torch.equal(model(data[0]), outputs)
    with lc.linearize(model, lines, data[0]):
        fitted = model(data[0])
    with lc.linearize(model, {"forward#2": "identity"}, data[0]):
        assert (fitted - outputs).square().mean() < (model(data[0]) - outputs).square().mean()


def test_a_constant_input_has_slope_zero() -> None:
    moments = Moments(lc.capture(nn.ReLU(), torch.randn(2, 3)).sites[0], torch.relu)
    moments(torch.tensor([[3.0, -1.0, 0.1]]).repeat(7, 1), False)
    slopes, constants = moments.line("")
    assert slopes.tolist() == [0, 0, 0]
    assert constants.tolist() == pytest.approx([3, 0, 0.1], abs=1e-6)


def test_bad_input() -> None:
    model, x = MODELS["a module"][0](), torch.randn(2, 3)
    with pytest.raises(LayerCollapseError, match="site"):
        fit_lines(model, ["2"], [x], x)
    with pytest.raises(LayerCollapseError, match="data: expected batches that reach the site '1', got none"):
        fit_lines(model, ["1"], [], x)
    with pytest.raises(LayerCollapseError, match="captured: expected a capture of this model"):
        fit_lines(model, ["1"], [x], x, captured=lc.capture(MODELS["functions"][0](), x))
    with lc.linearize(model, {"1": "zero"}, x), pytest.raises(LayerCollapseError, match="'1' is linear already"):
        fit_lines(model, ["1"], [x], x)
