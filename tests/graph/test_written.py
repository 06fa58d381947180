"""Written activations in whole models: their names, channels and modes, and what is emitted for them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layercollapse as lc
from activations import FORMS, Net, direct, sites
from layercollapse.compiler.backend import serialize as store
from layercollapse.compiler.backend.emit import emit
from layercollapse.compiler.frontend.lower import lower
from layercollapse.entropy.probe import EntropyProbe
from layercollapse.graph.capture import capture
from layercollapse.graph.written import TensorMemo


def test_what_is_known_of_a_tensor_goes_with_it() -> None:
    memo: TensorMemo[int] = TensorMemo()
    known, ids = torch.zeros(1), set()
    memo[known] = 1
    for number in range(100):  # of those that are gone, others get the ids
        other = torch.zeros(1)
        assert memo.get(other) is None
        memo[other] = number
        ids.add(id(other))
        del other
    assert len(ids) < 100
    assert memo.get(known) == 1


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
