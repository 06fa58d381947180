"""Layers of every kind as records: transposed, of several dtypes, and views; compared in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import layercollapse as lc
from networks import agrees_exactly


def sizes(model: nn.Module) -> list[tuple[int, int]]:
    """Output and input channels of the convolutions."""
    return sorted((m.out_channels, m.in_channels) for m in model.modules() if isinstance(m, nn.Conv2d))


TRANSPOSED = [
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    {"kernel_size": 3, "stride": 3, "padding": 2, "dilation": 2, "groups": 2},
    {"kernel_size": 1},
    {"kernel_size": 4, "groups": 4},
]


@pytest.mark.parametrize("window", TRANSPOSED, ids=str)
@pytest.mark.parametrize("dims", [pytest.param(1, marks=pytest.mark.long), 2, pytest.param(3, marks=pytest.mark.long)])
def test_transposed_convolutions(dims: int, window: dict, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kind, point = ((nn.ConvTranspose1d, nn.Conv1d), (nn.ConvTranspose2d, nn.Conv2d), (nn.ConvTranspose3d, nn.Conv3d))[
        dims - 1
    ]
    sizes = (5, 4, 3)[:dims]
    x = torch.randn(2, 3, *sizes).double()

    def check(model: nn.Module, layers: int) -> None:
        model = model.double()
        result = agrees_exactly(model, x)
        assert sum(p.ndim > 1 for p in result.model.parameters()) == layers
        other = torch.randn(1, 3, *(size + 2 for size in sizes)).double()
        torch.testing.assert_close(result.model(other), model(other), atol=1e-10, rtol=1e-10)
        result.save(tmp_path)
        assert torch.equal(lc.load(tmp_path)(x), result.model(x))

    up = kind(4, 8, **({"groups": 1} | window)) if window.get("groups") != 4 else kind(4, 4, **window)
    relu = nn.ReLU()
    # It stays as it is; a scale and layers that read one position join it; constants meet its border.
    check(nn.Sequential(point(3, 4, 3, padding=1), relu, up, nn.ReLU()), 2)
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1](up.out_channels)
    norm.running_mean.normal_()
    layers = 3 if window.get("groups") == 4 else 2  # a dense layer for a depthwise one is more work
    check(nn.Sequential(point(3, 4, 3, padding=1), relu, up, norm, point(up.out_channels, 2, 1)), layers)
    wide = kind(3, 3, 2, stride=2)
    check(nn.Sequential(point(3, 3, 1), wide, nn.ReLU()), 2)  # the bias of the first is a map behind the second
    first = point(3, 4, 1)
    first.weight.data[1:] = 0
    first.bias.data[1] = 1.0
    check(nn.Sequential(first, nn.ReLU(), kind(4, 2, **{**window, "groups": 1})), 2)
    first.weight.data.zero_()
    check(nn.Sequential(first, nn.ReLU(), kind(4, 2, **{**window, "groups": 1})), window["kernel_size"] > 1)


def test_bounds_of_a_transposed_convolution() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 3, stride=2), nn.ReLU(), nn.Conv2d(3, 2, 1)).double()
    model[0].weight.data.abs_()
    x = torch.rand(2, 2, 4, 5).double() + 1
    for bias, status in ((0.0, "collapsed"), (-0.01, "kept")):  # between the pixels there is only the bias
        model[0].bias.data.fill_(bias)
        result = lc.collapse(model, x, None, box=(1.0, 2.0))
        assert result.sites[0].status == status
        assert result.max_abs_error < 1e-10


def test_a_view_fits_maps_with_their_channels_last_in_memory() -> None:
    class Inplace(nn.Module):
        def forward(self, x):
            return x.relu_().flatten(1)  # written out, as it works on the input: flatten becomes a view

    x = torch.randn(2, 3, 4, 5)
    result = lc.collapse(Inplace(), x.clone(), None, cost="macs")
    last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(result.model(last.clone()), Inplace()(last.clone()))


class Mixed(nn.Module):
    """Two layers and a rectifier whose neurons are all on, in bfloat16, and a head in float32."""

    def __init__(self, autocast: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head, self.autocast = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(4, 3), autocast
        self.a.bias.data += 8
        if not autocast:
            self.a, self.b = self.a.bfloat16(), self.b.bfloat16()

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            x = self.b(torch.relu(self.a(x)))
        return self.head(x.float())


@pytest.mark.parametrize("autocast", [False, True])
def test_layers_stay_in_the_dtype_that_they_compute_in(autocast: bool) -> None:
    model, x = Mixed(autocast).eval(), torch.rand(4, 6, dtype=torch.float32 if autocast else torch.bfloat16)
    with torch.no_grad(), lc.EntropyProbe(model) as probe:
        model(x)
    result = lc.collapse(model, x, probe.report(), tolerance=0.1, cost="macs")
    assert [site.status for site in result.sites] == ["collapsed"]
    assert result.after.depth == 2  # no layer merges with one of another dtype
    assert sorted(str(p.dtype) for p in result.model.parameters()) == ["torch.bfloat16"] * 2 + ["torch.float32"] * 2
    torch.testing.assert_close(result.model(x), model(x), atol=0.05, rtol=0.02)
    assert result.model(x).dtype == torch.float32


@pytest.mark.parametrize("affine", [False, True])
def test_an_instance_norm_by_running_statistics_is_a_scale(affine: bool) -> None:
    torch.manual_seed(0)
    norm = nn.InstanceNorm2d(4, affine=affine, track_running_stats=True)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    by_sample = nn.InstanceNorm2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), by_sample, nn.Conv2d(4, 2, 1)).double()
    result = agrees_exactly(model, torch.randn(2, 3, 6, 6).double())
    assert [type(m) for m in result.model.modules()][1:] == [nn.Conv2d, nn.ReLU, nn.Conv2d]
    called = [node.target for node in result.model.graph.nodes if node.op == "call_function"]
    assert called == [torch.ops.aten.instance_norm.default]
