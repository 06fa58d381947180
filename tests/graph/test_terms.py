"""Expressions followed call by call: their roundings, their memory, and random ones, alike in probe and graph."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from activations import FORMS, Function, Net, gelu_by_a_root, sites
from layercollapse.compiler.backend.emit import emit
from layercollapse.compiler.frontend.lower import lower
from layercollapse.entropy.probe import EntropyProbe
from layercollapse.graph.capture import capture


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["gelu GPT-2", "quick gelu", "silu", "hard swish"])
def test_half_precision_keeps_the_roundings_of_every_step(form: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = Net(FORMS[form][2]).to(dtype).eval(), 3 * torch.randn(50, 4, dtype=dtype)
    assert sites(model, x) == {"forward": (FORMS[form][0], 5, None)}
    assert torch.equal(emit(lower(capture(model, x), model))(x), model(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_factor_that_is_a_root_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = Net(gelu_by_a_root).to(dtype).eval(), 3 * torch.randn(50, 4, dtype=dtype)
    assert sites(model, x) == ({} if dtype == torch.float64 else {"forward": ("gelu", 5, None)})
    made = emit(lower(capture(model, x), model))(x)
    torch.testing.assert_close(made, model(x), rtol=0, atol=1e-6 if dtype == torch.float32 else 0)


def test_the_probe_keeps_no_tensor_there() -> None:
    class Track(TorchFunctionMode):
        """Counts the activations that are there when a call is made, of those that calls have given."""

        def __init__(self) -> None:
            super().__init__()
            self.made: list[weakref.ref] = []
            self.alive: list[int] = []

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.alive.append(sum(ref() is not None for ref in self.made))
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.shape == (3, 5):
                self.made.append(weakref.ref(result))
            return result

    def steps(x: Tensor) -> Tensor:
        with Track() as track:  # it sees the model's calls, and none of the probe's
            for _ in range(3):
                x = torch.sigmoid(x * 2 - 1)
                x = torch.tanh(x + 1).abs()
                x = F.relu(x - 0.5) + (x > 0)
                x = x * torch.sigmoid(x)
        tracks.append(track)
        return x

    tracks: list[Track] = []
    model, x = Net(steps), torch.randn(3, 4)
    with torch.no_grad():
        model(x)
        with EntropyProbe(model) as probe:
            model(x)
    assert len(probe.calls()) == 6
    assert tracks[0].alive == tracks[1].alive


# Calls that leave a tensor's shape as it is: of rectifiers, of parts of some, and of neither.
STEPS: tuple[Function, ...] = (
    *(f for _, _, f in FORMS.values()),
    *(torch.sigmoid, torch.tanh, F.relu, F.silu, torch.abs, F.relu6, lambda x: x.clone(), lambda x: x * 0.5),
    *(lambda x: x + 3, lambda x: -x, lambda x: x / 6, lambda x: x.clamp(max=6), lambda x: (x > 0).to(x.dtype)),
)


JOINS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    torch.mul,
    torch.add,
    torch.maximum,
    lambda x, y: torch.where(x > 0, x, y),
    lambda x, y: x - y,
)


class Random(nn.Module):
    """Steps and joins of the last few tensors, as a seed says; `inner` is a second module that makes some of them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed, self.inner, self.layer = seed, nn.Module(), nn.Linear(3, 3)
        self.inner.forward = lambda x, f: f(x)  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        draw = random.Random(self.seed)
        made = [self.layer(x)]
        for _ in range(10):
            x = draw.choice(made[-3:])
            if draw.random() < 0.3:
                made.append(draw.choice(JOINS)(x, draw.choice(made[-3:])))
            else:
                step = draw.choice(STEPS)
                made.append(self.inner(x.clone(), step) if draw.random() < 0.5 else step(x.clone()))
            if draw.random() < 0.15:
                made.append(self.layer(made[-1]))
        return sum(made[1:], made[0])


@pytest.mark.parametrize("seed", range(8))
def test_random_expressions(seed: int) -> None:
    torch.manual_seed(seed)
    model, x = Random(seed).double().eval(), torch.randn(7, 3, dtype=torch.float64)
    with torch.no_grad(), EntropyProbe(model) as probe:
        expected = model(x)
    found = capture(model, x)
    calls = probe.calls()
    assert [(site.name, site.kind, site.upper) for site in found.sites] == [
        (name, call.kind, call.upper) for name, call in calls.items()
    ]
    emitted = emit(lower(found, model))
    torch.testing.assert_close(emitted(x), expected, rtol=1e-12, atol=1e-12)
