"""Weights that are buffers stay buffers, and what takes no gradient takes none, through the algebra and a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layercollapse as lc


class Blur(nn.Module):
    """A fixed filter for each channel, of a buffer that is in the state dict or not, or repeated in every call."""

    def __init__(self, channels: int, persistent: bool = True, repeated: bool = False) -> None:
        super().__init__()
        self.channels, self.repeated = channels, repeated
        kernel = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])).reshape(1, 1, 3, 3) / 16
        self.register_buffer("kernel", kernel if repeated else kernel.repeat(channels, 1, 1, 1), persistent)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.repeat(self.channels, 1, 1, 1) if self.repeated else self.kernel
        return F.conv2d(x, kernel, stride=2, padding=1, groups=self.channels)


class Network(nn.Module):
    def __init__(self, blur: nn.Module, between: nn.Module) -> None:
        super().__init__()
        self.first, self.blur, self.between, self.last = nn.Conv2d(3, 4, 3), blur, between, nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.between(self.blur(torch.tanh(self.first(x))))))


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


def norm(affine: bool, trained: bool = True) -> nn.Module:
    layer = nn.BatchNorm2d(4, affine=affine)
    layer.running_mean.uniform_(-1, 1)
    layer.running_var.uniform_(0.5, 2)
    return layer.requires_grad_(trained)


TRAINED = {"first.weight", "first.bias", "last.weight", "last.bias"}


@pytest.mark.parametrize(
    ("blur", "between", "more", "frozen"),
    [
        (Blur(4), nn.Identity(), set(), set()),
        (Blur(4, persistent=False), nn.Identity(), set(), set()),
        (Blur(4, repeated=True), nn.Identity(), set(), set()),
        (Blur(4), Halved(), set(), set()),
        (Blur(4), norm(affine=False), set(), set()),
        (Blur(4), norm(affine=True), {"blur.weight", "blur.bias"}, set()),
        (Blur(4), norm(affine=True, trained=False), set(), {"blur.weight", "blur.bias"}),
        (nn.Conv2d(4, 4, 3).requires_grad_(False), norm(affine=False), set(), {"blur.weight", "blur.bias"}),
    ],
)
def test_what_trains_is_what_did(
    blur: nn.Module, between: nn.Module, more: set[str], frozen: set[str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Network(blur, between).double().eval()
    x = torch.randn(2, 3, 9, 9).double()
    result = lc.collapse(model, x, None, cost="macs")
    assert result.after.depth == result.before.depth == 3
    result.save(tmp_path)
    for other in (result.model, lc.load(tmp_path), lc.collapse(result.model, x, None, cost="macs").model):
        named = dict(other.named_parameters())
        assert {name for name, value in named.items() if value.requires_grad} == TRAINED | more
        assert {name for name, value in named.items() if not value.requires_grad} == frozen
        assert {name.partition(".")[0] for name, _ in other.named_buffers()} <= {"blur"}
        torch.testing.assert_close(other(x), model(x), rtol=0, atol=1e-12)
        assert sum(value.numel() for value in other.state_dict().values()) >= 14 + 36


def test_parameters_are_counted_alike_before_and_after() -> None:
    model = Network(Blur(4), nn.Identity()).eval()
    result = lc.collapse(model, torch.randn(2, 3, 9, 9), None, cost="macs")
    assert result.before.parameters == result.after.parameters == 3 * 4 * 9 + 4 + 4 * 2 + 2


def test_a_filter_that_two_calls_share_is_one() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blur, self.layer = Blur(3), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.blur(torch.tanh(self.layer(torch.tanh(self.blur(x)))))

    model = Twice().eval()
    result = lc.collapse(model, torch.randn(2, 3, 9, 9), None, cost="macs")
    filters = [b for _, b in result.model.named_buffers(remove_duplicate=False)]
    assert len(filters) == 2
    assert filters[0] is filters[1]


class Projections(nn.Module):
    """Two layers in sequence, whose weights are parameters, or buffers, as the letters say; and a skip over them."""

    def __init__(self, kinds: str) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        for name, kind in zip(("one", "two"), kinds, strict=True):
            weight = torch.randn(4, 4)
            if kind == "b":
                self.register_buffer(name, weight)
            else:
                self.register_parameter(name, nn.Parameter(weight, requires_grad=kind == "p"))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x + F.linear(F.linear(x, self.one), self.two)))


@pytest.mark.parametrize(
    ("kinds", "trained", "frozen", "buffers"),
    [("bb", 20, 0, 16), ("bp", 36, 0, 0), ("pb", 36, 0, 0), ("bf", 20, 16, 0), ("fp", 36, 0, 0), ("ff", 20, 16, 0)],
)
def test_a_merged_layer_is_what_its_layers_were(kinds: str, trained: int, frozen: int, buffers: int) -> None:
    torch.manual_seed(0)
    model, x = Projections(kinds).double().eval(), torch.randn(3, 4).double()
    result = lc.collapse(model, x, None, cost="macs")
    assert (result.before.depth, result.after.depth) == (3, 2)
    parameters = list(result.model.parameters())
    assert sum(p.numel() for p in parameters if p.requires_grad) == trained
    assert sum(p.numel() for p in parameters if not p.requires_grad) == frozen
    assert sum(b.numel() for b in result.model.buffers()) == buffers
    torch.testing.assert_close(result.model(x), model(x), rtol=0, atol=1e-12)


def test_training_leaves_the_filter_as_it_was() -> None:
    torch.manual_seed(0)
    model = Network(Blur(4), nn.Identity())
    result = lc.collapse(model.eval(), torch.randn(2, 3, 9, 9), None, cost="macs")
    optimizer = torch.optim.SGD(result.model.train().parameters(), lr=0.1)
    result.model(torch.randn(2, 3, 9, 9)).square().sum().backward()
    optimizer.step()
    assert torch.equal(result.model.blur.weight, model.blur.kernel)
    assert not torch.equal(result.model.first.weight, model.first.weight)
