"""Two models on data: how far they agree, and what of that counts where outputs hardly vary."""

import pytest
import torch
from torch import nn

import layercollapse as lc
from layercollapse._util.spread import ROUNDING
from layercollapse.graph.agreement import Agreement, Output, compare

EPS = torch.finfo(torch.float32).eps


class Shifted(nn.Module):
    """`offset` and `gain` times its input."""

    def __init__(self, gain, offset, twice=False):
        super().__init__()
        self.gain, self.offset, self.twice = gain, offset, twice

    def forward(self, x):
        y = self.gain * x + self.offset
        return (10 * x, y) if self.twice else y


@pytest.mark.parametrize(
    ("error", "spread", "scale", "rounding", "within"),
    [
        (1e-4, 1.0, 10.0, 1e-6, True),
        (1.1e-4, 1.0, 10.0, 1e-3, False),  # rounding is no excuse beyond the tolerance
        (9e-6, 1e-3, 1.0, 1e-6, True),  # a tenth of the tolerance for a tenth of the spread
        (1.1e-5, 1e-3, 1.0, 1e-6, False),
        (1.1e-5, 1e-3, 1.0, 2e-5, True),
        (1e-4, None, 1.0, 1e-6, True),  # one sample
        (2e-15, 0.0, 1e-2, 1e-16, True),  # a constant: what made it was larger, and so was its rounding
        (9e-7, 0.0, 1e-2, 1e-16, True),  # a hundredth of the tolerance for a hundredth of the size
        (1.1e-6, 1e-16, 1e-2, 1e-16, False),
        (1e-9, 0.0, 0.0, 0.0, False),
        (0.0, 0.0, 0.0, 0.0, True),
    ],
)
def test_tolerance_by_hand(error, spread, scale, rounding, within):
    # The first output, which is right and varies, must not speak for the second.
    outputs = (Output(0.0, 10.0, 10.0, 1e-6), Output(error, spread, scale, rounding))
    assert Agreement(error, 1, 1, outputs).within(1e-4) is within
    assert Agreement(error, 1, 1, outputs).within(float("inf"))
    assert Agreement(error, 1, 1, outputs).within(0.0) is (error == 0)


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_a_wrong_constant_where_outputs_hardly_vary(twice, batched):
    x = torch.linspace(-1, 1, 8)[:, None]
    data = [x] if batched else list(x.split(1))
    reference = Shifted(1e-5, 0.5, twice)
    wrong = compare(reference, Shifted(0.0, 0.50003, twice), data)
    assert wrong.max_abs_error < 5e-5
    assert not wrong.within(1e-4)
    assert "vary by no more than 2e-05 over the data" in wrong.miss(1e-4)
    # A last place of the outputs more or less is rounding.
    assert compare(reference, Shifted(1e-5, 0.5 + 4 * EPS, twice), data).within(1e-4)
    assert wrong.hardly_varies is not twice


def test_the_miss_says_which_of_the_three_it_is():
    constant = Agreement(2e-6, 1, 2, (Output(2e-6, 0.0, 1e-2, 1e-9),))
    assert constant.miss(1e-4) == "2e-06, and are constants of no more than 0.01"
    varying = Agreement(2e-6, 1, 2, (Output(2e-6, 1e-6, 1e-2, 1e-9),))
    assert varying.miss(1e-4) == "2e-06, and vary by no more than 1e-06 over the data"
    assert Agreement(2e-4, 1, 2, (Output(2e-4, 1e-6, 1.0, 0.0),)).miss(1e-4) == "0.0002, more than the tolerance"


class Bent(nn.Module):
    """Below 2 its output is `offset`; above, it grows by `gain`."""

    def __init__(self, gain, offset):
        super().__init__()
        self.fc, self.head = nn.Linear(1, 1), nn.Linear(1, 1)
        with torch.no_grad():
            for layer, weight, bias in ((self.fc, 1.0, -2.0), (self.head, gain, offset)):
                layer.weight.fill_(weight)
                layer.bias.fill_(bias)

    def forward(self, x):
        return self.head(torch.relu(self.fc(x)))


@pytest.mark.parametrize("gain", [1e-5, 1.0])
def test_a_site_that_bends_on_the_data_stays_however_small_the_outputs_differences_are(gain):
    model = Bent(gain, 0.25)
    with lc.EntropyProbe(model) as probe:
        model(torch.tensor([[-1.0], [1.0]]))  # always off
    data = torch.tensor([[-1.0], [1.0], [4.0], [5.0]])
    result = lc.collapse(model, data[:2], probe.report(), data=[data])
    assert result.collapsed == ()
    assert result.max_abs_error <= 1e-6
    # 3, at 5, times the gain.
    assert result.spread == pytest.approx(3 * gain, rel=1e-2)
    assert result.hardly_varies is (gain < 1)
    assert ("hardly depend on its input: they vary by 3" in result.explain()) is (gain < 1)
    assert ("over the data" in result.sites[0].reason) is (gain < 1)
    assert ("more than the tolerance" in result.sites[0].reason) is (gain == 1)


def test_one_sample_has_no_spread():
    result = lc.collapse(Bent(1e-5, 0.25), torch.tensor([[5.0]]))
    assert result.spread is None
    assert not result.hardly_varies
    assert "hardly" not in result.explain()
    assert ROUNDING == 64
