"""The small transformers: sizes of images and texts, what can be changed, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo.data.split import Text
from layercollapse.zoo.models.transformers import TRANSFORMERS
from layercollapse.zoo.models.wanted import Wanted
from layercollapse.zoo.train import logits

pytest.importorskip("transformers")
TEXTS = Wanted(num_classes=3, text=Text(None, 50, 1, 12))


@pytest.mark.parametrize("name", ["vit", "swin"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (3, 16, 24), (1, 9, 9)])
def test_images_of_any_size(name: str, shape: tuple) -> None:
    model = TRANSFORMERS[name](Wanted(3, shape, width=32)).eval()
    assert logits(model, torch.randn(2, *shape)).shape == (2, 3)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_texts_and_their_padding(name: str) -> None:
    torch.manual_seed(0)
    model = TRANSFORMERS[name](replace(TEXTS, width=32, args={"hidden_act": "relu", "num_hidden_layers": 2})).eval()
    assert model.config.num_hidden_layers == 2
    ids = torch.randint(2, 50, (2, 12))
    mask = torch.ones_like(ids)
    mask[:, 7:] = 0
    inputs = {"input_ids": ids.where(mask == 1, 1), "attention_mask": mask}
    found = logits(model, inputs)
    other = logits(model, {**inputs, "input_ids": ids.where(mask == 1, 5)})
    assert found.shape == (2, 3)
    if name == "bert":  # RoBERTa counts positions by what is no padding
        torch.testing.assert_close(found, other)
    pair = logits(model, {**inputs, "token_type_ids": torch.ones_like(ids)})
    assert not torch.allclose(found, pair)


def test_what_is_refused() -> None:
    for name in TRANSFORMERS:
        wanted = TEXTS if name in ("bert", "roberta") else Wanted(3, (1, 8, 8))
        with pytest.raises(LayerCollapseError, match=f"width: expected a multiple of 16 for '{name}', got 20"):
            TRANSFORMERS[name](replace(wanted, width=20))
        with pytest.raises(
            LayerCollapseError, match=rf"model_args: expected keys of \w+Config, got depth for '{name}'"
        ):
            TRANSFORMERS[name](replace(wanted, args={"depth": 3}))
    with pytest.raises(LayerCollapseError, match="model: expected one for images, got 'bert', which reads texts"):
        TRANSFORMERS["bert"](Wanted(3, (1, 8, 8)))
    with pytest.raises(LayerCollapseError, match=r"model_args: BertConfig stopped with \w+: "):
        TRANSFORMERS["bert"](replace(TEXTS, args={"num_attention_heads": 3}))
