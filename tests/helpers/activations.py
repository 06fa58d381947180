"""Activations written out as people write them, in a small network; and the sites that probe and capture agree on."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layercollapse.entropy.probe import EntropyProbe
from layercollapse.graph.capture import capture

ROOT = math.sqrt(2 / math.pi)


Function = Callable[[Tensor], Tensor]


def zero_where_negative(x: Tensor) -> Tensor:
    x = x.clone()
    x[x < 0] = 0
    return x


def relu_in_place(x: Tensor) -> Tensor:
    size = x.abs()
    x += size
    x /= 2
    return x


def gelu_in_place(x: Tensor) -> Tensor:
    half = 0.5 * x
    x.div_(math.sqrt(2)).erf_().add_(1.0)  # what has the signs of the input now is its half
    return half.mul_(x)


def hard_swish_by_steps(x: Tensor) -> Tensor:
    x = x * F.relu6(x + 3.0)
    x /= 6.0  # the input is gone
    return x


GELU_BY_TANH: dict[str, Function] = {
    "GPT-2": lambda x: 0.5 * x * (1.0 + torch.tanh(ROOT * (x + 0.044715 * torch.pow(x, 3.0)))),
    "BLOOM": lambda x: x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x))),
    "fast": lambda x: 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x))),
    "two halves": lambda x: x / 2 + (x / 2) * torch.tanh(ROOT * x + ROOT * 0.044715 * x.pow(3)),
}


def gelu_by_a_root(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(torch.sqrt(torch.tensor(2.0 / math.pi)) * (x + 0.044715 * x**3)))


FORMS: dict[str, tuple[str, float | None, Function]] = {
    **{f"gelu {name}": ("gelu", None, f) for name, f in GELU_BY_TANH.items()},
    "gelu erf": ("gelu", None, lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))),
    "gelu in place": ("gelu", None, gelu_in_place),
    "quick gelu": ("quick_gelu", None, lambda x: x * torch.sigmoid(1.702 * x)),
    "silu": ("silu", None, lambda x: x.sigmoid() * x),
    "silu in place": ("silu", None, lambda x: x.mul_(torch.sigmoid(x))),
    "mish": ("mish", None, lambda x: x * torch.tanh(F.softplus(x))),
    "hard swish": ("hardswish", None, lambda x: x * F.relu6(x + 3) / 6),
    "hard swish of a gate": ("hardswish", None, lambda x: x * F.hardsigmoid(x)),
    "hard swish of a clamp": ("hardswish", None, lambda x: (x + 3).clamp(0, 6).mul(1 / 6) * x),
    "hard swish by steps": ("hardswish", None, hard_swish_by_steps),
    "maximum": ("relu", None, lambda x: torch.maximum(x, torch.tensor(0.0, dtype=x.dtype))),
    "max": ("relu", None, lambda x: torch.max(torch.zeros_like(x), x)),
    "fmax": ("relu", None, lambda x: torch.fmax(x, x.new_zeros(()))),
    "where": ("relu", None, lambda x: torch.where(x > 0, x, 0)),
    "where not": ("relu", None, lambda x: torch.where(x <= 0, torch.zeros_like(x), x)),
    "where as a method": ("relu", None, lambda x: x.where(~(x < 0), x.new_zeros(()))),
    "times a mask": ("relu", None, lambda x: x * (x > 0)),
    "times a mask of numbers": ("relu", None, lambda x: (x > 0).to(x.dtype).mul(x)),
    "masked fill": ("relu", None, lambda x: x.masked_fill(x < 0, 0)),
    "assigned": ("relu", None, zero_where_negative),
    "with its absolute": ("relu", None, lambda x: (x + x.abs()) / 2),
    "in place": ("relu", None, relu_in_place),
    "leaky where": ("leaky_relu", None, lambda x: torch.where(x > 0, x, 0.1 * x)),
    "leaky maximum": ("leaky_relu", None, lambda x: torch.maximum(x, 0.1 * x)),
    "leaky of two": ("leaky_relu", None, lambda x: F.relu(x) - 0.25 * F.relu(-x)),
    "relu6": ("relu6", 6.0, lambda x: torch.minimum(torch.max(x, torch.zeros_like(x)), 6 * torch.ones_like(x))),
    "relu6 in place": ("relu6", 6.0, lambda x: x.clamp_(min=0).clamp_(max=6)),
    "relu1": ("hardtanh", 1.0, lambda x: F.relu(x).clamp(max=1)),
}


class Net(nn.Module):
    def __init__(self, f: Function) -> None:
        super().__init__()
        self.first, self.last, self.f = nn.Linear(4, 5), nn.Linear(5, 3), f

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.f(self.first(x)))


def sites(model: nn.Module, *inputs: Tensor) -> dict[str, tuple[str, int, float | None]]:
    """The sites that the probe and the capture agree on."""
    with torch.no_grad(), EntropyProbe(model) as probe:
        model(*(x.clone() for x in inputs))
    ours = {name: (call.kind, call.channels, call.upper) for name, call in probe.calls().items()}
    assert ours == {site.name: (site.kind, site.channels, site.upper) for site in capture(model, inputs).sites}
    return ours


def direct(x: Tensor, upper: float | None) -> Tensor:
    columns = [x < 0, x == 0, x > 0, x.isnan()] + ([x >= upper] if upper else [])
    return torch.stack([column.sum(0) for column in columns], 1)
