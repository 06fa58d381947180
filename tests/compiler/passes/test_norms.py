"""The affine part of a norm goes into the layers that read it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import layercollapse as lc


class Normed(nn.Module):
    """A layer norm read by one or two linear layers, by a skip, or by a head that is tied to the embedding."""

    def __init__(self, read: str, bias: bool = True) -> None:
        super().__init__()
        self.read = read
        self.embed, self.norm = nn.Embedding(9, 4), nn.LayerNorm(4, bias=bias)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
        nn.init.normal_(self.norm.weight)
        if bias:
            nn.init.normal_(self.norm.bias)
        if read == "tied":
            self.b.weight = self.embed.weight

    def forward(self, x):
        y = self.norm(self.embed(x))
        if self.read == "two":
            return torch.relu(self.a(y)), self.b(y)
        return self.b(y) if self.read == "tied" else self.b(torch.relu(self.a(y)) + (y if self.read == "skip" else 0))


@pytest.mark.parametrize(
    ("read", "bias"), [("one", True), ("one", False), ("two", True), ("skip", True), ("tied", True)]
)
def test_the_affine_part_of_a_layer_norm(read: str, bias: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Normed(read, bias).double().eval()
    x = torch.randint(0, 9, (3, 5))
    result = lc.collapse(model, x, None, cost="macs")  # of so small a network, time decides nothing twice alike
    torch.testing.assert_close(result.model(x), model(x), atol=1e-12, rtol=1e-12)
    assert any(name.startswith("norm") for name, _ in result.model.named_parameters()) == (read in ("skip", "tied"))
    assert result.after.parameters <= result.before.parameters + (9 if read == "two" else 0)  # b gets a bias
    result.save(tmp_path)
    torch.testing.assert_close(lc.load(tmp_path)(x), result.model(x))
