"""The tensors of a model as the converters see them."""

from __future__ import annotations

import torch
from torch import nn

from networks import agrees_exactly


class Made(nn.Module):
    """Layers without modules of their own, whose weights are computed; the third is a parameter as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.v, self.w = (nn.Parameter(torch.randn(4, 4)) for _ in range(3))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x):
        x = torch.relu(nn.functional.linear(x, 2 * self.v, 2 * self.bias))
        x = torch.relu(nn.functional.linear(x, self.w.abs(), 3 * self.bias))
        return nn.functional.linear(x, self.weight)


def test_computed_weights_of_one_module_are_kept_apart() -> None:
    torch.manual_seed(0)
    agrees_exactly(nn.Sequential(Made(), nn.ReLU(), Made()).double(), torch.randn(2, 4).double())
    shared = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    with nn.utils.parametrize.cached():
        result = agrees_exactly(nn.Sequential(shared, nn.ReLU(), shared).double(), torch.randn(2, 4).double())
    assert sum(p.numel() for p in result.model.parameters()) == 20
