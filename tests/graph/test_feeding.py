"""Which weights feed a site behind which operations, and what is said of sites without any."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layercollapse as lc


class Between(nn.Module):
    """A convolution or a linear layer, some operations, a rectifier, an output layer; and one beside them."""

    def __init__(self, function: Callable[[Between, Tensor], Tensor], rows: bool) -> None:
        super().__init__()
        self.function, self.rows = function, rows
        self.layer: nn.Module = nn.Linear(6, 8) if rows else nn.Conv2d(3, 8, 3)
        self.other: nn.Module = nn.Linear(6, 8) if rows else nn.Conv2d(3, 8, 3)
        self.scores = nn.Linear(6, 8)
        self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.groups, self.instances = nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True)
        self.layers, self.squares = nn.LayerNorm(8), nn.RMSNorm(8)
        self.register_buffer("blur", torch.full((8, 1, 2, 2), 0.25))
        self.head, self.tail = nn.LazyLinear(2), nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        y = self.function(self, self.layer(x)).relu()
        return self.head(y.flatten(1)) + self.tail(x.flatten(1))


def written_norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()


# Operations on the rows (N, 5, 8) of a linear layer, and on the maps (N, 8, 5, 5) of a convolution.
ON_ROWS: dict[str, Callable[[Between, Tensor], Tensor]] = {
    "reshape_as": lambda m, y: y.flatten(0, 1).reshape_as(y),
    "view_as": lambda m, y: y.view_as(torch.zeros_like(y)),
    "unflatten": lambda m, y: y.unflatten(-1, (2, 4)),
    "heads": lambda m, y: y.unflatten(-1, (2, 4)).transpose(1, 2),
    "chunk": lambda m, y: y.chunk(2, -1)[1],
    "split": lambda m, y: y.split((3, 5), -1)[0],
    "slice": lambda m, y: y[..., 2:7],
    "select": lambda m, y: y[:, 0],
    "stack": lambda m, y: torch.stack(y.chunk(2, -1), 1),
    "repeat": lambda m, y: y.repeat(1, 2, 1),
    "layer norm": lambda m, y: m.layers(y),
    "layer norm written out": lambda m, y: written_norm(y),
    "rms norm": lambda m, y: m.squares(y),
    "rms norm written out": lambda m, y: y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6),
    "gate": lambda m, y: y * torch.sigmoid(m.other(m.x)),
    "gate of itself": lambda m, y: y * torch.sigmoid(y.mean(1, keepdim=True)),
    "glu": lambda m, y: F.glu(y, -1),
    "attention": lambda m, y: F.scaled_dot_product_attention(m.scores(m.x), m.other(m.x), y),
    "attention written out": lambda m, y: torch.softmax(m.scores(m.x) @ m.other(m.x).mT / 3, -1) @ y,
    "where": lambda m, y: torch.where(y > 1, y, 2 * y),
}
ON_MAPS: dict[str, Callable[[Between, Tensor], Tensor]] = {
    "upsampling": lambda m, y: F.interpolate(y, scale_factor=2),
    "bilinear": lambda m, y: F.interpolate(y, scale_factor=2, mode="bilinear"),
    "bicubic": lambda m, y: F.interpolate(y, scale_factor=2, mode="bicubic"),
    "group norm": lambda m, y: m.groups(y),
    "instance norm": lambda m, y: m.instances(y),
    "squeeze and excitation": lambda m, y: y * torch.sigmoid(m.up(m.down(y.mean((2, 3), keepdim=True)))),
    "channel attention before a sum": (
        lambda m, y: y * y.mean((2, 3)).unsqueeze(1).transpose(1, 2).sigmoid().unsqueeze(-1).expand_as(y) + 1
    ),
    "fixed filter": lambda m, y: F.conv2d(y, m.blur, groups=8),
    "chunk": lambda m, y: y.chunk(2, 1)[0],
    "max pooling": lambda m, y: F.max_pool2d(y, 2),
    "pixel shuffle": lambda m, y: F.pixel_shuffle(y, 2),
}


def between(name: str) -> tuple[Between, Tensor]:
    rows = name.startswith("rows")
    function = (ON_ROWS if rows else ON_MAPS)[name.partition(": ")[2]]
    torch.manual_seed(0)
    model, x = Between(function, rows).eval(), torch.randn(4, 5, 6) if rows else torch.randn(4, 3, 7, 7)
    with torch.no_grad():
        model(x)
    return model, x


EVERY = [*(f"rows: {name}" for name in ON_ROWS), *(f"maps: {name}" for name in ON_MAPS)]


@pytest.mark.parametrize("name", EVERY)
def test_the_layer_feeds_the_site_and_a_gate_does_not(name: str) -> None:
    model, x = between(name)
    (site,) = lc.capture(model, x).sites
    assert site.feeding == ("layer.weight",)
    assert site.unfed == ""


# What collapse does not see to be constant: channels in several dimensions, norms written out, shuffled channels.
UNSEEN = ("unflatten", "heads", "stack", "norm written out", "glu", "where", "pixel shuffle")


@pytest.mark.parametrize("name", [name for name in EVERY if not name.endswith(UNSEEN)])
def test_without_weights_the_site_collapses(name: str) -> None:
    model, x = between(name)
    model, x = model.double(), x.double()
    with torch.no_grad():
        model.layer.weight.zero_()
        model.layer.bias.uniform_(-0.05, 0.05)
    result = lc.collapse(model, x, cost="macs")
    assert [(site.status, site.guarantee) for site in result.sites] == [("collapsed", "exact")]
    assert result.max_abs_error < 1e-12
    torch.testing.assert_close(result.model(2 * x), model(2 * x), atol=1e-12, rtol=0)


class Experts(nn.Module):
    def __init__(self, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.product, self.experts, self.head = product, nn.Parameter(torch.randn(3, 6, 8)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        up, gate = self.product(x, self.experts).chunk(2, -1)
        return self.head(up * F.silu(gate))


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bmm": torch.bmm,
    "baddbmm": lambda x, w: torch.baddbmm(x[..., :1], x, w),
    "matmul": lambda x, w: x @ w,
    "einsum": lambda x, w: torch.einsum("eni,eio->eno", x, w),
    "weights first": lambda x, w: (w.mT @ x.mT).mT,
    "one of them": lambda x, w: F.linear(x, w[1].T),
    "those that the data choose": lambda x, w: torch.bmm(x, w[x[:, 0, 0].argsort()]),
}


@pytest.mark.parametrize("product", PRODUCTS)
def test_weights_of_experts_feed(product: str) -> None:
    capture = lc.capture(Experts(PRODUCTS[product]), torch.randn(3, 5, 6))
    assert [site.feeding for site in capture.sites] == [("experts",)]
