"""Which models can call rectifiers as modules only."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layercollapse.graph.transparent import calls_modules_only, calls_none


def helper(x: Tensor) -> Tensor:
    return x.flatten(1) / math.sqrt(2)


def hidden(x: Tensor) -> Tensor:
    return x.relu()


TABLE = [F.relu]


class Net(nn.Module):
    slope = 0.1

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.ReLU()])
        self.scale = nn.Parameter(torch.ones(4))
        self.skip, self.act, self.fn, self.parts = None, nn.Sigmoid, F.relu, [F.relu]

    def forward(self, x: Tensor) -> Tensor:
        return x


class Usual(Net):
    def forward(self, x: Tensor, *, skip: bool = False) -> Tensor:
        y: Tensor = x if self.skip is None else self.skip(x)
        for layer in self.layers:
            y = layer(y)
        if skip or self.training:
            raise ValueError("none")
        n, c = y.shape[:2]
        return self.tail(torch.cat([y, helper(x)], dim=1).view(n, 2 * c)) * self.slope

    def tail(self, x: Tensor) -> Tensor:
        def twice(z: Tensor) -> Tensor:
            return z + z

        return F.dropout(twice(x), 0.1, self.training) @ self.layers[0].weight.repeat(1, 2).t()


class Function(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class Method(Net):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp_(min=0)


class Compared(Net):
    def forward(self, x: Tensor) -> Tensor:
        return x * (x > 0)


class Attribute(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x)


class Listed(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.parts[0](x)


class OfTable(Net):
    def forward(self, x: Tensor) -> Tensor:
        return TABLE[0](x)


class Helped(Net):
    def forward(self, x: Tensor) -> Tensor:
        return hidden(x)


class Default(Net):
    def forward(self, x: Tensor, act=F.relu) -> Tensor:
        return act(x)


class Named(Net):
    def forward(self, x: Tensor) -> Tensor:
        return getattr(torch, "relu")(x)  # noqa: B009


class OfClass(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Imported(Net):
    def forward(self, x: Tensor) -> Tensor:
        from torch import relu

        return relu(x)


class OwnMethod(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)

    def inner(self, x: Tensor) -> Tensor:
        return torch.maximum(x, torch.zeros_like(x))


class Property(Net):
    @property
    def inner(self) -> Tensor:
        return self.scale.relu()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.inner


class Decorated(Net):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return x


class Called(Net):
    def __call__(self, x: Tensor) -> Tensor:
        return torch.relu(super().__call__(x))


class Norm(Net):
    def norm(self, x: Tensor) -> Tensor:
        return x.relu()


class OfAnother(Net):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Norm()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner.norm(x)


def renamed() -> nn.Module:
    model = Usual()
    model.layers[0].norm = torch.relu
    return model


def enclosed() -> nn.Module:
    act = torch.relu

    class Enclosed(Net):
        def forward(self, x: Tensor) -> Tensor:
            return act(x)

    return Enclosed()


def without_source() -> nn.Module:
    space: dict = {"Net": Net}
    exec("class Made(Net):\n    def forward(self, x):\n        return x", space)
    return space["Made"]()


def replaced() -> nn.Module:
    model = Usual()
    model.layers[0].forward = torch.relu
    return model


def hooked() -> nn.Module:
    model = Usual()
    model.layers[0].register_forward_hook(lambda module, args, output: torch.relu(output))
    return model


def test_a_usual_model() -> None:
    model = Usual().eval()
    assert calls_modules_only(model)
    assert model(torch.randn(2, 4)).shape == (2, 4)


@pytest.mark.parametrize(
    "make",
    [
        *(
            Function,
            Method,
            Compared,
            Attribute,
            Listed,
            OfTable,
            Helped,
            Named,
            OfClass,
            Imported,
            OwnMethod,
            Property,
        ),
        *(Decorated, Called, OfAnother, renamed, enclosed, without_source, replaced, hooked, nn.Sigmoid, nn.Hardtanh),
        lambda: nn.TransformerEncoderLayer(4, 2),
    ],
)
def test_what_may_call_one(make) -> None:
    assert not calls_modules_only(nn.Sequential(Usual(), make()))


def test_modules_that_call_none() -> None:
    layer = nn.Linear(2, 2)
    assert calls_none(layer)
    layer.register_forward_pre_hook(lambda module, args: None)
    assert not calls_none(layer)
    assert not calls_none(nn.ReLU())
    assert not calls_none(Usual())
