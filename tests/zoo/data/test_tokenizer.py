"""Tokenizers: words of the texts in a fixed order, padding and masks by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo.data.tokenizer import about, encoded, from_file, of_words

pytest.importorskip("tokenizers")
TEXTS = ["The cat sat.", "the DOG sat!", "a cat"]


def test_words_by_frequency_then_by_name() -> None:
    found = of_words(TEXTS)
    vocabulary = sorted(found.get_vocab(), key=found.get_vocab().get)
    assert vocabulary == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cat", "sat", "the", "!", ".", "a", "dog"]


def test_tokens_by_hand() -> None:
    text = about(of_words(TEXTS), 6)
    assert (text.vocabulary, text.pad, text.tokens) == (11, 0, 6)
    found = encoded(text, [["The dog", "cat cat cat cat cat cat", "unheard"]])
    assert found["input_ids"].tolist() == [[2, 6, 10, 3, 0, 0], [2, 4, 4, 4, 4, 3], [2, 1, 3, 0, 0, 0]]
    assert found["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6, [1, 1, 1, 0, 0, 0]]
    assert set(found) == {"input_ids", "attention_mask"}
    assert found["input_ids"].dtype == torch.int64


def test_pairs_have_kinds() -> None:
    found = encoded(about(of_words(TEXTS), 8), [["cat"], ["the dog"]])
    assert found["input_ids"].tolist() == [[2, 4, 3, 6, 10, 3, 0, 0]]
    assert found["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1, 0, 0]]


def test_a_file_gives_the_same(tmp_path: Path) -> None:
    made = of_words(TEXTS)
    made.save(str(tmp_path / "tokenizer.json"))
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        assert torch.equal(
            encoded(about(from_file(place), 6), [TEXTS])["input_ids"], encoded(about(made, 6), [TEXTS])["input_ids"]
        )


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(LayerCollapseError, match=r"tokenizer: expected a tokenizer.json at "):
        from_file(tmp_path)
    with pytest.raises(LayerCollapseError, match="tokens: expected at least 3"):
        about(of_words(TEXTS), 2)
    from tokenizers import Tokenizer, models

    with pytest.raises(LayerCollapseError, match=r"tokenizer: expected a token to pad with \(\[PAD\], <pad>"):
        about(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), 4)
