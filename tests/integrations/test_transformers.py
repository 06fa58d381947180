"""Trainer, pipelines and generate of transformers on collapsed models."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import layercollapse as lc

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from layercollapse.integrations.transformers import LayerCollapseCallback, as_pretrained, from_pretrained  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded", "one_thread")

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}


def bert(labels: int = 3, **others: Any) -> nn.Module:
    config = transformers.BertConfig(
        **SMALL, intermediate_size=24, hidden_act="relu", max_position_embeddings=16, num_labels=labels, **others
    )
    return transformers.BertForSequenceClassification(config).eval()


def texts(count: int = 12) -> list[dict[str, Any]]:
    return [
        {
            "input_ids": torch.randint(20, (6,)),
            "attention_mask": torch.ones(6, dtype=torch.long),
            "labels": at % 3,
        }
        for at in range(count)
    ]


def arguments(folder: Path, **others: Any) -> Any:
    return transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        seed=0,
        **others,
    )


def example(model: nn.Module) -> dict[str, torch.Tensor]:
    words = torch.randint(model.config.vocab_size, (2, 5))
    return {"input_ids": words, "attention_mask": torch.ones_like(words)}


def killed(model: nn.Module) -> nn.Module:
    """The model with a rectifier whose input is constant, so that there is something to collapse."""
    layers = [module for name, module in model.named_modules() if name.endswith(("intermediate.dense", "fc1"))]
    for layer in layers[:1]:
        nn.init.zeros_(layer.weight)
        nn.init.uniform_(layer.bias, -1, 1)
    return model


def collapsed(model: nn.Module) -> lc.CollapseResult:
    result = lc.collapse(killed(model), example(model), None, cost="macs")
    assert result.collapsed
    return result


def test_trainer_evaluates_a_collapsed_model_as_it_is(tmp_path: Path) -> None:
    model = bert()
    result, data = collapsed(model), texts()
    small = as_pretrained(result, model)
    losses = [
        transformers.Trainer(one, arguments(tmp_path), eval_dataset=data).evaluate()["eval_loss"]
        for one in (model, result.model, small)
    ]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)
    output = result.model(**example(model))
    assert type(output) is transformers.modeling_outputs.SequenceClassifierOutput
    assert output.logits.shape == (2, 3)
    assert output.loss is None


LOSSES: dict[str, Any] = {
    "one of three": (lambda: bert(3), torch.tensor([2, 0])),
    "several of three": (lambda: bert(3, problem_type="multi_label_classification"), torch.rand(2, 3)),
    "a number": (lambda: bert(1), torch.rand(2)),
    "tokens": (
        lambda: transformers.BertForTokenClassification(bert().config).eval(),
        torch.tensor([[0, 1, 2, -100, 1]] * 2),
    ),
    "masked words": (
        lambda: transformers.BertForMaskedLM(bert().config).eval(),
        torch.tensor([[-100, 7, 2, -100, 1]] * 2),
    ),
}


@pytest.mark.parametrize(
    "name", [n if n == "one of three" else pytest.param(n, marks=pytest.mark.long) for n in LOSSES]
)
def test_losses_of_transformers(name: str, tmp_path: Path) -> None:
    make, labels = LOSSES[name]
    model = make()
    result, inputs = collapsed(model), example(model)
    result.save(tmp_path / "small.v1")
    for small in (result.model, lc.load(tmp_path / "small.v1")):
        expected, got = model(**inputs, labels=labels), small(**inputs, labels=labels)
        assert type(got) is type(expected)
        assert list(got) == list(expected)
        torch.testing.assert_close(got.loss, expected.loss)
        torch.testing.assert_close(got.logits, expected.logits)
        with pytest.raises(lc.LayerCollapseError, match=r"^token_type_ids: "):
            small(**inputs, token_type_ids=torch.zeros_like(inputs["input_ids"]))


def opt() -> nn.Module:
    config = transformers.OPTConfig(
        **SMALL, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=32, use_cache=False, pad_token_id=1
    )
    return transformers.OPTForCausalLM(config).eval()


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        n_layer=1,
        n_embd=16,
        n_head=2,
        vocab_size=20,
        n_positions=32,
        activation_function="relu",
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("make", [opt, pytest.param(gpt2, marks=pytest.mark.long)])
def test_generate(make: Any, tmp_path: Path) -> None:
    model = make()
    inputs = example(model)
    result = lc.collapse(killed(model), inputs, None, cost="macs")
    labels = inputs["input_ids"].clone()
    torch.testing.assert_close(result.model(**inputs, labels=labels).loss, model(**inputs, labels=labels).loss)
    small = as_pretrained(result, model)
    small.save_pretrained(tmp_path / "small.v1")
    for other in (small, from_pretrained(tmp_path / "small.v1")):
        for beams in (1, 2):
            ends = {"pad_token_id": 1, "eos_token_id": 19}
            how = {"max_new_tokens": 6, "use_cache": False, "do_sample": False, "num_beams": beams, **ends}
            assert torch.equal(other.generate(**inputs, **how), model.generate(**inputs, **how))
        with pytest.raises(lc.LayerCollapseError, match=r"^use_cache: .* collapse it again"):
            other(**inputs, use_cache=True)


def tokenizer() -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: at for at, word in enumerate(["[PAD]", "[UNK]", *"abcdefghijklmnopqr"])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]", model_input_names=["input_ids", "attention_mask"]
    )


@pytest.mark.long
def test_pipelines(tmp_path: Path) -> None:
    model, words = bert(), tokenizer()
    small = as_pretrained(collapsed(model), model)
    small.save_pretrained(tmp_path)
    sentences = ["a b c", "q r", "e"]
    expected = transformers.pipeline("text-classification", model=model, tokenizer=words)(sentences)
    for other in (small, from_pretrained(tmp_path)):
        assert isinstance(other, transformers.BertForSequenceClassification)
        got = transformers.pipeline("text-classification", model=other, tokenizer=words)(sentences)
        assert [one["label"] for one in got] == [one["label"] for one in expected]
        assert [one["score"] for one in got] == pytest.approx([one["score"] for one in expected], rel=1e-4)
    decoder = opt()
    small = as_pretrained(lc.collapse(decoder, example(decoder), None, cost="macs"), decoder)
    how = {"max_new_tokens": 4, "do_sample": False, "use_cache": False}
    texts = [
        transformers.pipeline("text-generation", model=one, tokenizer=words)("a b", **how) for one in (decoder, small)
    ]
    assert texts[0] == texts[1]


def test_the_wrapper_shares_nothing_with_the_original_and_says_what_is_wrong(tmp_path: Path) -> None:
    model = bert()
    result = collapsed(model)
    small = as_pretrained(result, model)
    assert set(model.state_dict()).isdisjoint(small.state_dict())
    assert {id(p) for p in small.parameters()} == {id(p) for p in result.model.parameters()}
    assert list(inspect.signature(small.forward).parameters) == ["input_ids", "attention_mask", "labels"]
    with pytest.raises(lc.LayerCollapseError, match=r"^output_attentions: .* got True"):
        small(**example(model), output_attentions=True)
    with pytest.raises(lc.LayerCollapseError, match=r"model: expected a PreTrainedModel"):
        as_pretrained(result, nn.Linear(2, 2))
    with pytest.raises(lc.LayerCollapseError, match=r"result: expected a CollapseResult"):
        as_pretrained(model, model)
    with pytest.raises(lc.LayerCollapseError, match=r"wrapped with its CollapseResult"):
        as_pretrained(result.model, model).save_pretrained(tmp_path)
    result.save(tmp_path)
    with pytest.raises(lc.LayerCollapseError, match=r"folder: expected .* config.json"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["os"]}')
    with pytest.raises(lc.LayerCollapseError, match=r"an architecture of transformers in config.json, got 'os'"):
        from_pretrained(tmp_path)


@pytest.mark.long
def test_callback_prunes_keeps_zeros_collapses_and_resumes(tmp_path: Path) -> None:
    data = texts()
    more = {"num_train_epochs": 3, "save_strategy": "epoch"}

    def train(folder: Path, resume: Any = None) -> tuple[Any, LayerCollapseCallback]:
        torch.manual_seed(0)
        callback = LayerCollapseCallback(0.5, rule="uniform", out=folder / "small", collapse={"cost": "macs"})
        trainer = transformers.Trainer(bert(), arguments(folder, **more), train_dataset=data, callbacks=[callback])
        trainer.train(resume_from_checkpoint=resume)
        return trainer, callback

    trainer, callback = train(tmp_path / "one")
    assert [round(step.density, 2) for step in callback.pruned] == [0.5, 0.25]
    weight = trainer.model.bert.encoder.layer[0].intermediate.dense.weight
    assert round(float((weight != 0).float().mean()), 2) == 0.25
    assert callback.result is not None
    inputs = example(trainer.model)
    trainer.model.eval()
    torch.testing.assert_close(callback.result.model(**inputs).logits, trainer.model(**inputs).logits)
    loaded = lc.load(tmp_path / "one" / "small")
    torch.testing.assert_close(loaded(**inputs).logits, trainer.model(**inputs).logits)

    checkpoints = sorted((tmp_path / "one").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    again, resumed = train(tmp_path / "two", str(checkpoints[1]))
    assert resumed.pruned == []
    assert resumed.pruner is not None
    assert resumed.pruner.density == callback.pruner.density  # type: ignore[union-attr]
    torch.testing.assert_close(again.model.bert.encoder.layer[0].intermediate.dense.weight, weight)
