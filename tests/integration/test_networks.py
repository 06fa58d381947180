"""The networks of transformers, unmodified: one dead layer each goes, and the outputs stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import layercollapse as lc
from layercollapse.compiler.analysis.bounds.propagate import neuron_states
from layercollapse.compiler.frontend.lower import lower
from layercollapse.entropy.layer import MIXED

transformers = pytest.importorskip("transformers")

IDS = torch.arange(5, 21).reshape(2, 8)
TOKENS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
TEXT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 60}
# name -> configuration, model, inputs, the layer whose weights are cleared, sites, layers with weights that go
NETWORKS: dict[str, tuple[Any, Any, Any, str, int, int]] = {
    "bert_gelu": (
        transformers.BertConfig(**TEXT, intermediate_size=32),
        transformers.BertForSequenceClassification,
        TOKENS,
        "bert.encoder.layer.1.intermediate.dense",
        2,
        2,
    ),
    "roberta_relu": (
        transformers.RobertaConfig(**TEXT, intermediate_size=32, hidden_act="relu"),
        transformers.RobertaForSequenceClassification,
        TOKENS,
        "roberta.encoder.layer.0.intermediate.dense",
        2,
        2,
    ),
    "vit": (
        transformers.ViTConfig(
            image_size=32,
            patch_size=8,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
        ),
        transformers.ViTForImageClassification,
        IMAGES,
        "vit.layers.1.mlp.fc1",
        2,
        2,
    ),
    "swin": (
        transformers.SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[2], num_heads=[2], window_size=4),
        transformers.SwinForImageClassification,
        IMAGES,
        "swin.encoder.layers.0.blocks.1.mlp.fc1",
        2,
        2,
    ),
    "resnet_bottleneck": (
        transformers.ResNetConfig(depths=[1, 2], hidden_sizes=[16, 32], embedding_size=8, num_labels=5),
        transformers.ResNetForImageClassification,
        IMAGES,
        "resnet.encoder.stages.1.layers.1.layer.0.convolution",
        10,
        3,
    ),
    "opt": (
        transformers.OPTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=32,
            vocab_size=60,
            max_position_embeddings=32,
            word_embed_proj_dim=16,
            bos_token_id=0,
            eos_token_id=1,
            use_cache=False,
        ),
        transformers.OPTForCausalLM,
        TOKENS,
        "model.decoder.layers.1.fc1",
        2,
        2,
    ),
    "gpt2": (
        transformers.GPT2Config(
            n_embd=16,
            n_layer=2,
            n_head=2,
            vocab_size=60,
            n_positions=32,
            activation_function="relu",
            bos_token_id=0,
            eos_token_id=1,
            use_cache=False,
        ),
        transformers.GPT2LMHeadModel,
        TOKENS,
        "transformer.h.0.mlp.c_fc",
        2,
        2,
    ),
}


def call(model: nn.Module, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return (model(**inputs) if isinstance(inputs, dict) else model(inputs))["logits"]


def quick(name: str) -> object:
    return pytest.param(name, marks=pytest.mark.long if name in ("gpt2", "opt", "swin", "resnet_bottleneck") else ())


@pytest.mark.parametrize("name", [*map(quick, NETWORKS)])
def test_a_dead_layer_goes(name: str, tmp_path: Path) -> None:
    config, kind, inputs, dead, sites, gone = NETWORKS[name]
    torch.manual_seed(0)
    model = kind(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))  # transformers starts all biases at zero
    layer = model.get_submodule(dead)
    layer.weight.data.zero_()
    result = lc.collapse(model, inputs, None)
    assert len(result.sites) == sites
    assert any(site.guarantee == "exact" for site in result.sites)
    assert result.before.depth - result.after.depth == gone
    assert result.after.parameters < result.before.parameters
    result.save(tmp_path)
    loaded = lc.load(tmp_path)
    three = (
        {k: v.repeat(2, 1)[:3] for k, v in inputs.items()}
        if isinstance(inputs, dict)
        else inputs.repeat(2, 1, 1, 1)[:3]
    )
    for other in (inputs, three):  # the batch stays dynamic
        expected = call(model, other)
        assert float(expected.abs().max()) > 0.01
        torch.testing.assert_close(call(loaded, other), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["roberta_relu", "vit", "opt", "gpt2"])
def test_neurons_behind_a_layer_norm_are_certified(name: str) -> None:
    """Without a box: what a linear layer makes of normalized rows has bounds of its own."""
    config, kind, inputs, *_ = NETWORKS[name]
    if name == "vit":
        config = transformers.ViTConfig(**{**config.to_dict(), "hidden_act": "relu"})
    torch.manual_seed(0)
    model = kind(config).eval()
    capture = lc.capture(model, inputs)
    for site in capture.sites:
        bias = model.get_submodule(next(w for w in capture.weights if w in site.feeding).rpartition(".")[0]).bias
        bias.data.copy_(torch.linspace(-1, 1, len(bias)))
    states = neuron_states(lower(lc.capture(model, inputs), model))
    assert set(states) == {site.name for site in capture.sites}
    with torch.no_grad(), lc.EntropyProbe(model) as probe:
        for _ in range(20):
            if name == "vit":
                model(10 ** (4 * torch.rand(()) - 2) * torch.randn(16, 3, 32, 32))
            else:
                model(input_ids=torch.randint(60, (16, 8)), attention_mask=torch.rand(16, 8).ge(0.2).long())
    for layer in probe.report():
        known = states[layer.name] != MIXED
        assert torch.equal(layer.states[known], states[layer.name][known])
        # And no few: of the neurons that are steady, most.
        assert int(known.sum()) > 0.5 * int((layer.states != MIXED).sum()) > 0
