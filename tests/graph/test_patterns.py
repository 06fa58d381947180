"""Activations that a model writes out: found by the probe and in the graph alike, with the counts of their input."""

from __future__ import annotations

import math

import pytest
import torch

from activations import FORMS, Function, Net, direct, sites
from layercollapse.compiler.backend.emit import emit
from layercollapse.compiler.frontend.lower import lower
from layercollapse.entropy.probe import EntropyProbe
from layercollapse.graph.capture import capture
from layercollapse.graph.patterns import recognise


@pytest.mark.parametrize("form", FORMS)
def test_a_written_activation_is_a_site_with_the_counts_of_its_input_and_the_same_values(form: str) -> None:
    torch.manual_seed(0)
    kind, upper, f = FORMS[form]
    model, x = Net(f).double().eval(), 3 * torch.randn(50, 4, dtype=torch.float64)
    with torch.no_grad(), EntropyProbe(model) as probe:
        expected = model(x)
    (layer,) = probe.report()
    assert (layer.name, layer.kind) == ("forward", kind)
    assert torch.equal(layer.counts, direct(model.first(x), upper))
    captured = capture(model, x)
    (site,) = captured.sites
    assert (site.name, site.kind, site.upper, site.feeding) == ("forward", kind, upper, ("first.weight",))
    emitted = emit(lower(captured, model))
    assert len([m for m in emitted.modules() if not list(m.children())]) == 3
    torch.testing.assert_close(emitted(x), expected, rtol=0, atol=1e-12)


OTHERS: dict[str, Function] = {
    "a gate of another tensor": lambda x: x * torch.sigmoid(x.flip(-1)),
    "squeeze and excitation": lambda x: x * torch.sigmoid(x.mean(-1, keepdim=True)),
    "half a gate": lambda x: x * torch.sigmoid(x).flip(-1),
    "a clamp on both sides": lambda x: x.clamp(-1, 1),
    "a clamp from above": lambda x: torch.minimum(x, torch.zeros_like(x)),
    "another bend": lambda x: torch.maximum(x, torch.ones_like(x)),
    "nearly at zero": lambda x: torch.where(x > 1e-5, x, 0),
    "a window": lambda x: torch.where((2 * x - 40).abs() < 1e-4, 1.0, torch.where(x > 0.5, x, 0)),
    "another slope": lambda x: x * torch.sigmoid(1.6 * x),
    "the size": lambda x: x.abs(),
    "a slope below zero": lambda x: torch.maximum(x, -0.1 * x),
    "integers": lambda x: torch.where(x.long() > 0, x.long(), 0).to(x.dtype),
    "of the other dtype's mask": lambda x: x * (x.flip(-1) > 0),
    "truncated": lambda x: x * 0.5 * (1 + torch.erf(x / 1.4142)),
    "a bound of every channel": lambda x: torch.maximum(x, torch.linspace(0, 1, 5)),
}


@pytest.mark.parametrize("form", OTHERS)
def test_what_is_no_rectifier(form: str) -> None:
    assert sites(Net(OTHERS[form]).eval(), torch.randn(6, 4)) == {}


def test_constants_of_eight_digits_are_those_of_float32() -> None:
    half = (("mul", ("1", "2")), ("mul", (0.5, "x")), ("add", (1.0, "3")), ("erf", ("4",)))
    for factor, rough, precise in ((math.sqrt(0.5), "gelu", "gelu"), (0.70710678, "gelu", None), (0.7071, None, None)):
        body = (*half, ("mul", ("x", factor)))
        found = [recognise(body, precise=digits) for digits in (False, True)]
        assert [match and match.kind for match in found] == [rough, precise]
