"""Activations that a model writes out: found by the probe and in the graph alike, with the counts of their input."""

from __future__ import annotations

import math
import random
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import layercollapse as lc
from layercollapse.compiler.backend import serialize as store
from layercollapse.compiler.backend.emit import emit
from layercollapse.compiler.frontend.lower import lower
from layercollapse.entropy.probe import EntropyProbe
from layercollapse.graph.capture import capture
from layercollapse.graph.patterns import recognise

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


@pytest.mark.parametrize("form", FORMS)
def test_a_written_activation_is_a_site_with_the_counts_of_its_input_and_the_same_values(form: str) -> None:
    torch.manual_seed(0)
    kind, upper, f = FORMS[form]
    model, x = Net(f).double().eval(), 3 * torch.randn(50, 4, dtype=torch.float64)
    with torch.no_grad(), EntropyProbe(model) as probe:
        expected = model(x)
    (layer,) = probe.report()
    assert (layer.name, layer.kind) == ("forward", kind)
    assert torch.equal(layer.counts, direct(model.first(x), upper))
    captured = capture(model, x)
    (site,) = captured.sites
    assert (site.name, site.kind, site.upper, site.feeding) == ("forward", kind, upper, ("first.weight",))
    emitted = emit(lower(captured, model))
    assert len([m for m in emitted.modules() if not list(m.children())]) == 3
    torch.testing.assert_close(emitted(x), expected, rtol=0, atol=1e-12)


OTHERS: dict[str, Function] = {
    "a gate of another tensor": lambda x: x * torch.sigmoid(x.flip(-1)),
    "squeeze and excitation": lambda x: x * torch.sigmoid(x.mean(-1, keepdim=True)),
    "half a gate": lambda x: x * torch.sigmoid(x).flip(-1),
    "a clamp on both sides": lambda x: x.clamp(-1, 1),
    "a clamp from above": lambda x: torch.minimum(x, torch.zeros_like(x)),
    "another bend": lambda x: torch.maximum(x, torch.ones_like(x)),
    "nearly at zero": lambda x: torch.where(x > 1e-5, x, 0),
    "a window": lambda x: torch.where((2 * x - 40).abs() < 1e-4, 1.0, torch.where(x > 0.5, x, 0)),
    "another slope": lambda x: x * torch.sigmoid(1.6 * x),
    "the size": lambda x: x.abs(),
    "a slope below zero": lambda x: torch.maximum(x, -0.1 * x),
    "integers": lambda x: torch.where(x.long() > 0, x.long(), 0).to(x.dtype),
    "of the other dtype's mask": lambda x: x * (x.flip(-1) > 0),
    "truncated": lambda x: x * 0.5 * (1 + torch.erf(x / 1.4142)),
    "a bound of every channel": lambda x: torch.maximum(x, torch.linspace(0, 1, 5)),
}


@pytest.mark.parametrize("form", OTHERS)
def test_what_is_no_rectifier(form: str) -> None:
    assert sites(Net(OTHERS[form]).eval(), torch.randn(6, 4)) == {}


def test_names_and_numbers_among_ordinary_calls_and_unread_ones() -> None:
    class Act(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x)

    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.act = nn.Linear(4, 4), Act()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = F.relu(self.layer(x))
            x = self.act(self.layer(x))
            x = torch.maximum(self.layer(x), torch.zeros_like(x))
            torch.where(x > 0, x, 0.5 * x)  # nothing reads it
            x = self.act(self.layer(x))
            gate = torch.sigmoid(x)  # an output, too
            x = F.gelu(self.layer(gate * x))
            y = F.relu6(x + 3)  # read by another, and part of a hard swish
            return self.layer(x * y / 6 + y.flip(-1)), gate

    model, x = Many().eval(), torch.randn(3, 4)
    with torch.no_grad(), EntropyProbe(model) as probe:
        model(x)
    calls = {name: call.kind for name, call in probe.calls().items()}
    found = capture(model, x)
    assert {site.name: site.kind for site in found.sites} | {"forward#3": "leaky_relu"} == calls
    assert list(calls.items()) == [
        *(("forward", "relu"), ("act", "silu"), ("forward#2", "relu"), ("forward#3", "leaky_relu")),
        *(("act#2", "silu"), ("forward#4", "silu"), ("forward#5", "gelu"), ("forward#6", "hardswish")),
    ]
    assert found.unread == {"forward#3"}
    emitted = emit(lower(found, model))
    for ours, theirs in zip(emitted(x), model(x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_channels_lie_where_those_of_an_ordinary_call_would() -> None:
    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(2, 6, 3), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            x = x * torch.sigmoid(1.702 * x)
            x = x.permute(0, 2, 3, 1)
            return self.last(torch.where(x > 0, x, 0).permute(0, 3, 1, 2))

    model, x = Maps().eval(), torch.randn(2, 2, 7, 7)
    assert sites(model, x) == {"forward": ("quick_gelu", 6, None), "forward#2": ("relu", 6, None)}
    torch.testing.assert_close(emit(lower(capture(model, x), model))(x), model(x))


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


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("form", ["gelu GPT-2", "in place", "silu in place", "relu6 in place"])
def test_in_autocast_and_inference_mode(form: str, mode: type) -> None:
    class Cast(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(x)

    model, x = Cast(FORMS[form][2]).eval(), torch.randn(9, 4)
    with mode(), EntropyProbe(model) as probe:
        model(x)
    (layer,) = probe.report()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.counts, direct(model.first(x), FORMS[form][1]))
    (site,) = capture(model, x).sites
    assert (site.name, site.kind) == (layer.name, layer.kind)
    with torch.no_grad():
        assert torch.equal(emit(lower(capture(model, x), model))(x), model(x))


def test_a_compiled_model() -> None:
    model, x = Net(FORMS["silu"][2]).eval(), torch.randn(3, 4)
    assert sites(torch.compile(model, backend="eager"), x) == {"forward": ("silu", 5, None)}  # type: ignore[arg-type]


def test_a_memory_efficient_function() -> None:
    class Swish(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * torch.sigmoid(x)

    with EntropyProbe(model := Net(Swish.apply)) as probe:
        model(torch.randn(3, 4))
    assert [layer.kind for layer in probe.report()] == ["silu"]


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


def test_emitted_modules_are_saved_and_found_again(tmp_path) -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = FORMS["quick gelu"][2](self.a(x))
            x = FORMS["gelu BLOOM"][2](self.b(x))
            return self.c(x) + FORMS["quick gelu"][2](x.sum(-1)).unsqueeze(-1)  # the last has no channels

    torch.manual_seed(0)
    model, x = Three().double().eval(), torch.randn(5, 4, dtype=torch.float64)
    emitted = emit(lower(capture(model, x), model))
    assert {type(m).__name__ for m in emitted.modules()} >= {"QuickGELU", "TanhGELU"}
    store.save(emitted, tmp_path / "model", x)
    loaded = store.load(tmp_path / "model")
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=1e-12)
    assert [site.kind for site in capture(loaded, x).sites] == ["quick_gelu", "gelu", "quick_gelu"]


def test_a_constant_quick_gelu_collapses() -> None:
    model, x = Net(FORMS["quick gelu"][2]).double().eval(), torch.randn(5, 4, dtype=torch.float64)
    model.first.weight.data.zero_()
    with torch.no_grad(), EntropyProbe(model) as probe:
        expected = model(x)
    result = lc.collapse(model, x, probe.report())
    assert result.sites[0].status == "collapsed"
    torch.testing.assert_close(result.model(x), expected, rtol=0, atol=1e-12)


def test_constants_of_eight_digits_are_those_of_float32() -> None:
    half = (("mul", ("1", "2")), ("mul", (0.5, "x")), ("add", (1.0, "3")), ("erf", ("4",)))
    for factor, rough, precise in ((math.sqrt(0.5), "gelu", "gelu"), (0.70710678, "gelu", None), (0.7071, None, None)):
        body = (*half, ("mul", ("x", factor)))
        found = [recognise(body, precise=digits) for digits in (False, True)]
        assert [match and match.kind for match in found] == [rough, precise]


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


@pytest.mark.long
@pytest.mark.parametrize("name", ["gpt2", "bloom", "clip"])
def test_transformers_have_all_of_theirs(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    words = {"input_ids": torch.randint(0, 50, (2, 5))}
    if name == "gpt2":
        config = transformers.GPT2Config(n_layer=12, n_embd=8, n_head=2, vocab_size=50, n_positions=8, use_cache=False)
        model, inputs, kind = transformers.GPT2Model(config), words, "gelu"
    elif name == "bloom":
        config = transformers.BloomConfig(n_layer=12, hidden_size=8, n_head=2, vocab_size=50, use_cache=False)
        model, inputs, kind = transformers.BloomModel(config), words, "gelu"
    else:
        sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 12, "num_attention_heads": 2}
        model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, image_size=8, patch_size=4))
        inputs, kind = {"pixel_values": torch.randn(2, 3, 8, 8, dtype=torch.float64)}, "quick_gelu"
    model = model.double().eval()
    with torch.no_grad(), EntropyProbe(model) as probe:
        expected = model(**inputs)["last_hidden_state"]
    found = capture(model, inputs)
    assert [(site.name, site.kind) for site in found.sites] == [(layer.name, kind) for layer in probe.report()]
    assert [len(site.feeding) for site in found.sites] == [1] * 12
    made = emit(lower(found, model))(*inputs.values())["last_hidden_state"]
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)
