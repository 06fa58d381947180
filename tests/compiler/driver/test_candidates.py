"""Sites with mixed neurons lose those that have one value: proven ones always, others where the user asks for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import layercollapse as lc
from networks import report_on


def second_site(row: float, bias: float) -> nn.Module:
    """Neuron 0 of the second site reads non-negative values with one weight, `row`; the three others are mixed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    model[2].weight.data[0] = row
    model[2].bias.data[0] = bias
    return model


def of_second(result: lc.CollapseResult) -> tuple[str, str, int]:
    site = result.sites[1]
    return site.status, site.guarantee, site.removed


def test_a_neuron_that_cannot_be_on_goes() -> None:
    model = second_site(-1.0, -0.5)
    x = 100 * torch.randn(500, 3).double()
    result = lc.collapse(model, x, None, tolerance=1e-9, cost="macs")
    assert of_second(result) == ("partial", "exact", 1)
    assert result.sites[1].reason.startswith("1 off whatever the input; ")
    assert "1 of 4 neurons are gone" in result.sites[1].reason
    assert result.model.get_submodule("2").out_features == 3
    torch.testing.assert_close(result.model(x), model(x))


def test_a_neuron_that_is_off_in_the_box_is_certified() -> None:
    model = second_site(-1.0, 0.5)
    model[0].bias.data.fill_(40.0)  # the first site is on for every input in the box
    x = torch.rand(500, 3).double()
    assert of_second(lc.collapse(model, x, None, tolerance=1e-9)) == ("kept", "", 0)
    result = lc.collapse(model, x, None, box=(0.0, 1.0), tolerance=1e-9, cost="macs")
    assert [site.guarantee for site in result.sites] == ["certified", "certified"]
    torch.testing.assert_close(result.model(x), model(x))


def test_the_data_decide_only_where_they_are_asked() -> None:
    model = second_site(0.01, -1.0)  # on for large inputs
    near, far = torch.randn(500, 3).double(), 1000 * torch.randn(500, 3).double()
    report = report_on(model, near)
    assert report["3"].states[0] == 0
    assert of_second(lc.collapse(model, near, report, cost="macs")) == ("kept", "", 0)
    result = lc.collapse(model, near, report, partial=True, cost="macs")
    assert of_second(result) == ("partial", "empirical", report["3"].count("off"))
    assert "in the data counted" in result.explain()
    torch.testing.assert_close(result.model(near), model(near))
    back = lc.collapse(model, near, report, data=[far], partial=True, cost="macs")
    assert of_second(back) == ("kept", "", 0)
    assert "without those that were steady on the data counted the outputs differ by" in back.explain()
    torch.testing.assert_close(back.model(far), model(far))


@pytest.mark.parametrize("padding", [0, 1])
def test_saturated_neurons_are_constants_also_at_a_padding(padding: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Hardtanh(-0.5, 0.75), nn.Conv2d(4, 3, 3, padding=padding), nn.ReLU(), nn.Conv2d(3, 2, 1)
    ).double()
    model[0].bias.data[:2] = torch.tensor([50.0, -50.0])
    x = torch.randn(8, 1, 9, 9).double()
    result = lc.collapse(model, x, report_on(model, x), partial=True, tolerance=1e-9, cost="macs")
    assert (result.sites[0].status, result.sites[0].guarantee) == ("partial", "empirical")
    # At a padding one constant channel stays, to carry both.
    assert result.sites[0].removed == (2 if padding == 0 else 1)
    torch.testing.assert_close(result.model(x), model(x))


def test_how_far_a_site_is_from_linear() -> None:
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
    model[0].weight.data.fill_(1.0)
    model[0].bias.data = torch.tensor([-0.5, -9.5, 100.0])
    x = torch.arange(1.0, 11.0)[:, None]  # neuron 0 is always on; 1 has one positive value of ten; 2 is on
    model[0].bias.data[0] = -3.5  # three negative values of ten
    result = lc.collapse(model, x, report_on(model, x))
    assert result.sites[0].reason == "mixed: 2 of 3 neurons change sign (the rarer sign is 10 to 30 % of their values)"


def test_why_a_rectifier_cannot_be_replaced() -> None:
    model, x = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0), nn.ReLU()), torch.randn(5, 4)
    model[0].bias.data += 20
    result = lc.collapse(model, x, report_on(model, x))
    assert result.sites[0].status == "kept"
    assert "it has no dimension of neurons" in result.sites[0].reason


class Gated(nn.Module):
    def forward(self, x):
        return nn.functional.prelu(x, x.mean().abs().reshape(1))


def test_slopes_that_the_data_make() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), Gated()), torch.randn(5, 4)
    assert lc.collapse(model, x, None).sites[0].reason == "its slopes are computed, not stored"
