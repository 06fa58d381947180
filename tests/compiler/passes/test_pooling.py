"""Layers that move behind pooling, means and flatten, or merge with them: fewer multiplications, the same outputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layercollapse as lc


class Between(nn.Module):
    """Layers with a function between."""

    def __init__(self, first: nn.Module, function: Callable[[Tensor], Tensor], last: nn.Module) -> None:
        super().__init__()
        self.first, self.function, self.last = first, function, last

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def collapsed(model: nn.Module, x: Tensor, *others: Tensor) -> lc.CollapseResult:
    model = model.double().eval()
    result = lc.collapse(model, x.double(), None, cost="macs")
    for other in (x, *others):
        torch.testing.assert_close(result.model(other.double()), model(other.double()), atol=1e-10, rtol=1e-10)
    assert result.after.macs <= result.before.macs
    return result


MEANS = {
    "mean": lambda x: x.mean((2, 3)),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "keepdim": lambda x: x.mean((2, 3), keepdim=True).flatten(1),
    "pool, then mean": lambda x: F.avg_pool2d(x, 2).mean((2, 3)),
}


@pytest.mark.parametrize("name", MEANS)
def test_a_pointwise_convolution_sinks_below_a_mean(name: str) -> None:
    torch.manual_seed(0)
    model = Between(nn.Conv2d(3, 8, 1), MEANS[name], nn.Linear(8, 4))
    result = collapsed(model, torch.randn(2, 3, 6, 8), torch.randn(3, 3, 10, 4))
    assert result.after.macs == 2 * 3 * 4  # one linear layer from 3 to 4, for two samples
    assert result.after.depth == 1


def test_a_linear_layer_sinks_below_a_mean_over_tokens() -> None:
    torch.manual_seed(0)
    model = Between(nn.Linear(3, 8), lambda x: x.mean(1), nn.ReLU())
    assert collapsed(model, torch.randn(2, 5, 3)).after.macs == 2 * 3 * 8


@pytest.mark.parametrize("size", [(6, 8), (7, 9)])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("kwargs", [{}, {"stride": 1}, {"padding": 1}, {"count_include_pad": False, "padding": 1},
                                    {"ceil_mode": True}, {"divisor_override": 5}], ids=str)  # fmt: skip
def test_average_pooling_behind_a_convolution(kwargs: dict, kernel: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = Between(nn.Conv2d(2, 3, kernel), lambda x: F.avg_pool2d(x, 2, **kwargs), nn.ReLU())
    result = collapsed(model, torch.randn(2, 2, *size), torch.randn(1, 2, size[0] + 3, size[1] + 2))
    if not kwargs:
        assert result.after.macs < result.before.macs


def test_a_convolution_merges_with_the_pooling_behind_it() -> None:
    torch.manual_seed(0)
    model = Between(nn.Conv2d(2, 3, 3, padding=1), lambda x: F.avg_pool2d(x, 2), nn.ReLU())
    result = collapsed(model, torch.randn(2, 2, 6, 8))
    (layer,) = (m for m in result.model.modules() if isinstance(m, nn.Conv2d))
    assert (layer.kernel_size, layer.stride, layer.padding) == ((4, 4), (2, 2), (1, 1))
    assert not any(node.op == "call_function" for node in result.model.graph.nodes)


def test_pooling_stays_where_merging_is_more_work() -> None:
    torch.manual_seed(0)
    model = Between(nn.ReLU(), lambda x: F.avg_pool2d(x, 2), nn.Conv2d(3, 4, 1))
    result = collapsed(model, torch.randn(2, 3, 6, 8))
    assert result.after.macs == result.before.macs


@pytest.mark.parametrize("window", [{}, {"padding": 1}, {"padding": 2, "dilation": 2}, {"stride": 2}, {"groups": 2}])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_convolution_merges_through_flatten(dims: int, window: dict) -> None:
    torch.manual_seed(0)
    sizes = (6, 7, 5)[:dims]
    first = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](2, 64, 3, **window)
    x = torch.randn(2, 2, *sizes)
    features = first(x).flatten(1).shape[1]
    result = collapsed(Between(first, lambda x: x.flatten(1), nn.Linear(features, 2)), x)
    assert result.after.depth == (2 if "stride" in window else 1)
    wide = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](2, 1, 3)
    features = wide(x).flatten(1).shape[1]
    result = collapsed(Between(wide, lambda x: x.flatten(1), nn.Linear(features, 64)), x)
    assert result.after.macs == result.before.macs


@pytest.mark.parametrize("dims", [(2,), (-1,)])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_pointwise_convolution_sinks_below_a_mean_over_one_dimension(dims: tuple[int, ...], groups: int) -> None:
    torch.manual_seed(0)
    model = Between(nn.Conv2d(3, 3, 1, groups=groups), lambda x: x.mean(dims), nn.ReLU())
    # With as many samples as channels, (N, C, L) also looks like one map of N channels.
    result = collapsed(model, torch.randn(3, 3, 6, 8), torch.randn(2, 3, 7, 5))
    assert [type(m) for m in result.model.modules()][1:] == [nn.Conv1d, nn.ReLU]


def test_merged_through_flatten_maps_of_another_size_are_refused() -> None:
    """The original takes them by accident; the weights of the merged layer are for positions of one map."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 48, 1)).double()
    x = torch.randn(2, 3, 6, 8).double()
    result = collapsed(model, x)
    assert result.after.depth == 1
    with pytest.raises(RuntimeError, match="size"):
        result.model(x.transpose(2, 3))
    # What reads one position fits maps of all sizes.
    collapsed(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 48, 1)), x, x.transpose(2, 3))


def test_a_scale_stays_before_a_flatten_that_no_layer_reads() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    norm.running_mean.normal_()
    model = Between(nn.ReLU(), lambda x: x, nn.Sequential(norm, nn.Flatten(), nn.Softmax(1)))
    result = collapsed(model, torch.randn(2, 3, 6, 8), torch.randn(2, 3, 5, 7))
    assert result.after.parameters == 6


def test_a_constant_map_stays_before_a_flatten_that_no_layer_reads() -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(3, 3, 1)
    first.weight.data.zero_()

    class Sum(Between):
        def forward(self, x):
            return self.first(x).flatten(1) + self.last(x).flatten(1)

    result = collapsed(Sum(first, torch.relu, nn.ReLU()), torch.randn(2, 3, 6, 8), torch.randn(2, 3, 5, 7))
    assert result.after.parameters == 3
