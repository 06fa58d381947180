"""What may replace a region, and at which cost."""

from __future__ import annotations

import torch
from torch import nn

from layercollapse.compiler.passes.refit import linear_regions
from layercollapse.compiler.tuning import candidates
from layercollapse.compiler.tuning.candidates import Choices, choices
from networks import Model, lowered


class Counted:
    """A cost model without a clock: a layer costs its weights, and 10 for being one."""

    def networks(self, models, example_inputs, *, seconds, passes):
        weights = {name: [m.weight for m in model.modules() if hasattr(m, "weight")] for name, model in models.items()}
        for model in models.values():  # they are what they are timed as
            assert model(*example_inputs)[0].shape == models[0](*example_inputs)[0].shape
        return {name: sum(weight.numel() + 10.0 for weight in some) for name, some in weights.items()}


def found(model: nn.Module, x: torch.Tensor, cost: Counted | None = None) -> list[Choices | str | None]:
    net = lowered(model, x)
    return [choices(net, region, cost, torch.device("cpu")) for region in linear_regions(net)]


def pair(between: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, between, 3, padding=1), nn.Conv2d(between, 4, 3, 2, 1), nn.ReLU())


def test_candidates_are_what_costs_less_than_the_exact_collapse_the_cheapest_first() -> None:
    (some,) = found(pair(), torch.randn(2, 4, 8, 8))
    assert isinstance(some, Choices)
    # 8x8 positions of 4 to 8 channels, then 4x4 of 8 to 4.
    assert some.cost == some.macs == 64 * 8 * 4 * 9 + 16 * 4 * 8 * 9
    expected = {}
    for kernel in (1, 3, 5):
        expected[f"one {kernel}x{kernel} convolution of stride 2"] = 16 * 4 * 4 * kernel**2
        for rank in (2, 1):
            words = f"one {kernel}x{kernel} convolution of stride 2 of rank {rank}"
            expected[words] = 16 * (rank * 4 * kernel**2 + 4 * rank)
    assert {str(one): one.macs for one in some.candidates} == expected
    assert [one.cost for one in some.candidates] == sorted(expected.values())
    assert [window.kernel for window in some.windows.values()] == [(5, 5)]


def test_the_cost_model_decides_and_has_to_gain_a_tenth() -> None:
    (some,) = found(pair(), torch.randn(2, 4, 8, 8), Counted())
    assert isinstance(some, Choices)
    assert some.cost == 2 * (4 * 8 * 9 + 10)
    assert some.macs == 64 * 8 * 4 * 9 + 16 * 4 * 8 * 9
    costs = {str(one): one.cost for one in some.candidates}
    assert costs["one 3x3 convolution of stride 2"] == 4 * 4 * 9 + 10
    assert costs["one 3x3 convolution of stride 2 of rank 2"] == 2 * 4 * 9 + 2 * 4 + 20
    assert costs["one 5x5 convolution of stride 2"] == 4 * 4 * 25 + 10
    narrow = pair(between=2)  # 164 in all: one 3x3 convolution is no tenth less
    (some,) = found(narrow, torch.randn(2, 4, 8, 8), Counted())
    assert isinstance(some, Choices)
    assert some.cost == 2 * (4 * 2 * 9 + 10)
    assert "one 3x3 convolution of stride 2" not in {str(one) for one in some.candidates}


def test_what_collapses_to_one_layer_is_left_alone() -> None:
    def mlp(self, x):
        return torch.relu(x + self.second(self.norm(self.first(x))))

    linear = Model(mlp, first=nn.Linear(8, 32), norm=nn.Identity(), second=nn.Linear(32, 8))
    assert found(linear, torch.randn(4, 5, 8)) == [None]
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    assert found(model, torch.randn(2, 4, 8, 8)) == [None]


def test_a_bottleneck_of_tokens_has_candidates_of_lower_rank() -> None:
    model = nn.Sequential(nn.Linear(16, 6), nn.Linear(6, 16), nn.ReLU())
    (some,) = found(model, torch.randn(4, 5, 16))
    assert isinstance(some, Choices)
    assert {str(one): one.macs for one in some.candidates} == {"one linear layer of rank 4": 5 * 2 * 16 * 4}
    assert some.macs == 5 * 2 * 16 * 6


def test_a_region_that_reads_two_tensors_has_a_layer_on_each() -> None:
    def forward(self, x):
        return torch.relu(self.c(self.b(self.a(x))) + self.e(self.d(torch.tanh(x))))

    layers = {name: nn.Conv2d(4, 4, 3, padding=1) for name in "abcde"}
    (some,) = found(Model(forward, **layers), torch.randn(2, 4, 8, 8))
    assert isinstance(some, Choices)
    assert {window.kernel for window in some.windows.values()} == {(5, 5)}
    costs = {str(one): one.macs for one in some.candidates}
    assert costs["2 3x3 convolutions"] == 2 * 64 * 16 * 9
    assert costs["2 3x3 convolutions of rank 2"] == 64 * (2 * 2 * 4 * 9 + 2 * 4)


def test_paths_that_no_kernel_joins_say_so() -> None:
    def forward(self, x):
        return torch.relu(self.b(self.a(x)) + self.c(torch.nn.functional.avg_pool2d(x, 2)))

    model = Model(forward, a=nn.Conv2d(4, 4, 3, 2, 1), b=nn.Conv2d(4, 4, 3, 1, 1), c=nn.Conv2d(4, 4, 1))
    (why,) = found(model, torch.randn(2, 4, 8, 8))
    assert isinstance(why, str)
    assert "other strides, or outputs of other sizes" in why


def test_a_kernel_with_too_many_unknowns_is_not_tried(monkeypatch) -> None:
    monkeypatch.setattr(candidates, "_UNKNOWNS", 50)
    (some,) = found(pair(), torch.randn(2, 4, 8, 8))
    assert isinstance(some, Choices)
    assert {window.kernel for one in some.candidates for window in one.windows.values()} == {(1, 1), (3, 3)}
