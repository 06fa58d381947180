"""A collapsed model is called as the original is: its arguments, their defaults, its outputs, its loss."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn

import layercollapse as lc
from layercollapse.compiler.backend.contract import loss_of

pytestmark = pytest.mark.usefixtures("seeded")


OTHER = object()


class Many(nn.Module):
    """Arguments of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, input, scale=None, shift=None, *, mode="plain", factor=1.0, relu=OTHER, **more):
        y = self.first(input).relu()
        y = y if scale is None else y * scale
        y = y if shift is None else y + shift
        y = y * factor + more.get("extra", 0)
        return self.last(y) if mode == "plain" else y


def x() -> Tensor:
    return torch.randn(2, 4)


EXAMPLES: dict[str, Any] = {
    "one": (x(),),
    "by name": {"input": x()},
    "two": (x(), x()),
    "the second": {"shift": x(), "input": x()},
    "all": {"extra": x(), "mode": "other", "factor": 2.0, "shift": x(), "scale": x(), "input": x()},
    "a given None": (x(), None, x()),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_arguments(name: str, tmp_path: Path) -> None:
    model, example = Many().eval(), EXAMPLES[name]
    args, kwargs = ((), example) if isinstance(example, dict) else (example, {})
    result = lc.collapse(model, example, None, cost="macs")
    result.save(tmp_path)
    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    given = {**bound.pop("more", {}), **bound}
    for other in (result.model, lc.load(tmp_path)):
        names = list(inspect.signature(other.forward).parameters)
        assert names[:6] == ["input", "scale", "shift", "mode", "factor", "relu"]
        assert names[6:] == (["extra"] if "extra" in kwargs else [])
        torch.testing.assert_close(other(*args, **kwargs), model(*args, **kwargs))
        torch.testing.assert_close(other(**given), model(**given))
        for argument, default in {"scale": None, "shift": None, "mode": "plain", "factor": 1.0}.items():
            if argument not in given:
                torch.testing.assert_close(other(**given, **{argument: default}), model(**given))
                for value in (x(), 3, "some"):
                    with pytest.raises(lc.LayerCollapseError, match=f"^{argument}: .* made without it"):
                        other(**given, **{argument: value})
            elif given[argument] is not None:
                with pytest.raises(lc.LayerCollapseError, match=f"^{argument}: "):
                    other(**{key: value for key, value in given.items() if key != argument})
        with pytest.raises(lc.LayerCollapseError, match=r"^relu: .* without it"):
            other(**given, relu=3)
        with pytest.raises(TypeError, match="unknown"):
            other(**given, unknown=3)
        again = lc.collapse(other, example, None, cost="macs").model
        torch.testing.assert_close(again(**given), model(**given))


class Variadic(Many):
    def forward(self, x, *others, factor=1.0):
        return sum(map(self.last, others), self.last(self.first(x).relu())) * factor


def test_arguments_of_any_number() -> None:
    model, example = Variadic().eval(), (x(), x(), x())
    small = lc.collapse(model, example, None, cost="macs").model
    torch.testing.assert_close(small(*example, factor=1), model(*example))
    with pytest.raises(lc.LayerCollapseError, match=r"^factor: "):
        small(*example, factor=2)


@dataclass
class Record:
    loss: Any = None
    logits: Any = None


class Named(NamedTuple):
    logits: Any
    loss: Any = None


pytree.register_dataclass(Record)


def as_dict(logits: Tensor, loss: Any) -> dict[str, Any]:
    return {"logits": logits} if loss is None else {"loss": loss, "logits": logits}


def shifted(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())


def mean_square(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.shape != logits.shape:
        raise ValueError("other shapes")
    return F.mse_loss(logits, labels)


LOSSES: dict[str, Any] = {
    "cross entropy": (lambda y, t: F.cross_entropy(y.transpose(1, -1), t), "integer"),
    "next token": (shifted, "integer"),
    "squared error": (mean_square, "floating"),
    "binary": (F.binary_cross_entropy_with_logits, "floating"),
}


class WithLoss(Many):
    """Labels add a loss, as in the models of transformers."""

    def __init__(self, loss: Any, make: Any = as_dict) -> None:
        super().__init__()
        self.loss, self.make = loss, make

    def forward(self, x, labels=None):
        logits = self.last(self.first(x).relu())
        return self.make(logits, None if labels is None else self.loss(logits, labels))


def labels_of(form: str, logits: Tensor) -> Tensor:
    if form == "floating":
        return torch.rand_like(logits)
    labels = torch.randint(logits.shape[-1], logits.shape[:-1])
    labels[0, 0] = -100
    return labels


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("make", [as_dict, lambda y, loss: Record(loss, y), Named])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses(name: str, make: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    loss, form = LOSSES[name]
    model = WithLoss(loss, make).eval().to(dtype)
    inputs = torch.randn(3, 5, 4).to(dtype)
    result = lc.collapse(model, inputs, None, cost="macs")
    result.save(tmp_path)
    for other in (result.model, lc.load(tmp_path, classes=[Record, Named])):
        new = torch.randn(2, 7, 4).to(dtype)
        logits = model(new)["logits"] if make is as_dict else model(new).logits
        labels = labels_of(form, logits)
        expected, got = model(new, labels), other(new, labels=labels)
        assert type(got) is type(expected)
        expected, got = (vars(v) if isinstance(v, Record) else v for v in (expected, got))
        got, expected = (v._asdict() if isinstance(v, Named) else v for v in (got, expected))
        assert list(got) == list(expected)
        torch.testing.assert_close(got["loss"], expected["loss"].to(got["loss"].dtype))
        torch.testing.assert_close(got["logits"], expected["logits"])
        assert pytree.tree_structure(other(new)) == pytree.tree_structure(model(new))
        wrong = "integer" if form == "floating" else "floating"
        with pytest.raises(lc.LayerCollapseError, match=r"^labels: expected "):
            other(new, labels_of(wrong, logits))


class Changes(Many):
    """Labels change the logits."""

    def forward(self, x, labels=None):
        y = self.last(self.first(x).relu())
        return {"logits": y} if labels is None else {"loss": mean_square(y, labels), "logits": y - labels}


@pytest.mark.parametrize("model", [Changes(), WithLoss(lambda y, t: mean_square(y, t) + 1), WithLoss(None), Many()])
def test_another_loss_is_an_error_that_names_the_labels(model: nn.Module) -> None:
    model = model.eval()
    example = torch.randn(2, 3, 4)
    assert loss_of(model, (example,), {}) is None
    small = lc.collapse(model, example, None, cost="macs").model
    if type(model) is not Many:
        with pytest.raises(lc.LayerCollapseError, match=r"^labels: .* made without it"):
            small(example, labels=torch.rand(2, 3, 3))


def test_the_configuration_stays_as_it_was() -> None:
    class Config:
        problem = None

    class Decides(WithLoss):
        config = Config()

        def forward(self, x, labels=None):
            if labels is not None:
                self.config.problem = self.config.problem or ("many" if labels.is_floating_point() else "one")
            return super().forward(x, labels)

    model = Decides(lambda y, t: F.mse_loss(y, t) if t.is_floating_point() else F.cross_entropy(y, t)).eval()
    loss = loss_of(model, (x(),), {})
    assert loss is not None
    assert (loss.integer, loss.floating) == ("cross_entropy", "squared_error")
    assert model.config.problem is None
    assert vars(model.config) == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_outputs_have_the_dtypes_of_the_original(dtype: torch.dtype) -> None:
    class Mixed(Many):
        def forward(self, x):
            y = self.last(self.first(x).relu())
            return {"y": y, "float": y.float(), "at": y.argmax(-1), "on": y > 0, "half": y.half(), "int": y.int()}

    model = Mixed().eval().to(dtype)
    inputs = x().to(dtype)
    small = lc.collapse(model, inputs, None, cost="macs", tolerance=1.0).model
    assert {k: v.dtype for k, v in small(inputs).items()} == {k: v.dtype for k, v in model(inputs).items()}
