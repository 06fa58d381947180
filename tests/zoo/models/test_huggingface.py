"""Models of transformers on disk: weights and head, configurations alone, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo.data.split import Text
from layercollapse.zoo.models import huggingface
from layercollapse.zoo.models.wanted import Wanted
from layercollapse.zoo.train import logits

transformers = pytest.importorskip("transformers")
TEXTS = Wanted(num_classes=3, text=Text(None, 50, 0, 12))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("models") / "bert"
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16, num_labels=2
    )
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(where)
    (where / "vocab.txt").write_text("[PAD]\n")
    return where


def test_trained_weights_and_a_new_head(folder: Path) -> None:
    built = huggingface.build(str(folder), TEXTS)
    assert built.pretrained
    before = transformers.BertForSequenceClassification.from_pretrained(folder)
    same = built.model.bert.state_dict()
    assert all(torch.equal(value, same[name]) for name, value in before.bert.state_dict().items())
    ids = torch.randint(0, 50, (2, 12))
    assert logits(built.model.eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}).shape == (2, 3)
    assert huggingface.tokenizer(str(folder)) == str(folder)
    assert huggingface.tokenizer(str(folder / "config.json")) is None


def test_a_configuration_alone(folder: Path) -> None:
    built = huggingface.build(str(folder / "config.json"), Wanted(3, text=TEXTS.text, args={"hidden_act": "relu"}))
    assert not built.pretrained
    assert (built.model.config.hidden_act, built.model.config.num_labels) == ("relu", 3)


def test_images(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        image_size=32, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16
    )
    config.save_pretrained(tmp_path)
    model = huggingface.build(str(tmp_path), Wanted(5, (1, 8, 8))).model.eval()
    assert logits(model, torch.randn(2, 1, 8, 8)).shape == (2, 5)


def test_what_does_not_fit(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LayerCollapseError, match=r"tokenizer: expected at most 50 tokens for .*, got 60: --tokenizer"):
        huggingface.build(str(folder), Wanted(3, text=Text(None, 60, 0, 12)))
    with pytest.raises(LayerCollapseError, match="model_args: expected keys of BertConfig, got depth"):
        huggingface.build(str(folder), Wanted(3, text=TEXTS.text, args={"depth": 2}))
    with pytest.raises(LayerCollapseError, match=r"model: hf:.* stopped with "):
        huggingface.build(str(folder), Wanted(3, (3, 8, 8)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LayerCollapseError, match=r"model: hf:.* stopped with "):
        huggingface.build(str(tmp_path), TEXTS)


def test_what_a_configuration_says_of_its_inputs(folder: Path, tmp_path: Path) -> None:
    assert huggingface.assumed(str(folder), None, 64, {}) == Wanted(2, text=Text(None, 50, 0, 64))
    transformers.RobertaConfig(vocab_size=70, max_position_embeddings=20, pad_token_id=1).save_pretrained(tmp_path)
    assert huggingface.assumed(str(tmp_path), None, 64, {}).text == Text(None, 70, 1, 18)
    transformers.ViTConfig(image_size=(8, 12), num_channels=1, num_labels=4).save_pretrained(tmp_path)
    assert huggingface.assumed(str(tmp_path), None, 64, {}) == Wanted(4, (1, 8, 12))
    assert huggingface.assumed(str(tmp_path), (3, 16, 16), 64, {}).shape == (3, 16, 16)
    with pytest.raises(LayerCollapseError, match=r"model: expected a folder with config.json, or such a file"):
        huggingface.assumed(str(tmp_path / "nothing"), None, 64, {})
