"""Tokenizers: that of a pretrained model from its folder, or one of the words in the training texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layercollapse.errors import LayerCollapseError, require
from layercollapse.zoo.data.split import Text

FILE = "tokenizer.json"
WORDS = 8192  # in a vocabulary that is made from the training texts
PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
PADS = (PAD, "<pad>", "<|pad|>", "<|endoftext|>", "</s>", "<eos>")
# Characters read for each token that is kept: more than words have, and texts of megabytes are not tokenized whole.
CHARACTERS = 64


def from_file(path: str | Path) -> Any:
    """The tokenizer in a tokenizer.json, or in the folder of a model.

    Raises:
        LayerCollapseError: there is none, or tokenizers (or, for older files, transformers) is not installed.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    tokenizers = require("tokenizers", "text")
    try:
        if file.is_file():
            return tokenizers.Tokenizer.from_file(str(file))
        auto = require("transformers", "text").AutoTokenizer
        return auto.from_pretrained(str(path), local_files_only=True, trust_remote_code=False).backend_tokenizer
    except LayerCollapseError:
        raise
    except Exception as error:  # of the Rust half, which raises Exception itself
        raise LayerCollapseError(
            f"tokenizer: expected a {FILE} at {path}, got: {str(error).splitlines()[0]}"
        ) from error


def of_words(texts: Iterable[str]) -> Any:
    """A tokenizer of the most frequent words in texts, in lower case, with signs as words of their own.

    The same texts give the same tokenizer: equally frequent words are in alphabetical order.
    """
    tokenizers = require("tokenizers", "text")
    normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.NFKC(), tokenizers.normalizers.Lowercase()])
    cutter = tokenizers.pre_tokenizers.Whitespace()
    counts = Counter[str]()
    for text in texts:
        counts.update(word for word, _ in cutter.pre_tokenize_str(normalizer.normalize_str(text)))
    special = [PAD, UNKNOWN, START, END]
    words = sorted((word for word in counts if word not in special), key=lambda word: (-counts[word], word))
    known = {word: number for number, word in enumerate([*special, *words[: WORDS - len(special)]])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token=UNKNOWN))
    made.normalizer, made.pre_tokenizer = normalizer, cutter
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{START} $A {END}",
        pair=f"{START} $A {END} $B:1 {END}:1",
        special_tokens=[(START, known[START]), (END, known[END])],
    )
    return made


def about(tokenizer: Any, tokens: int) -> Text:
    """What a model has to know of the texts that a tokenizer reads, at most `tokens` of each.

    Raises:
        LayerCollapseError: the tokenizer has no token to pad with.
    """
    if tokens < 3:
        raise LayerCollapseError(f"tokens: expected at least 3 (a start, a token, an end), got {tokens}")
    padding = tokenizer.padding or {}
    pad = padding.get("pad_id")
    if pad is None:
        pad = next((i for name in PADS if (i := tokenizer.token_to_id(name)) is not None), None)
    if pad is None:
        raise LayerCollapseError(f"tokenizer: expected a token to pad with ({', '.join(PADS)}), got none")
    return Text(tokenizer, tokenizer.get_vocab_size(with_added_tokens=True), int(pad), tokens)


def encoded(text: Text, columns: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    """Arguments of a model: ``input_ids`` and ``attention_mask``, int64 (N, tokens), padded behind the text.

    Args:
        text: the tokenizer and its length.
        columns: texts; or two of them, whose pairs are encoded together, with ``token_type_ids`` as well.
    """
    cut = [[entry[: CHARACTERS * text.tokens] for entry in column] for column in columns]
    tokenizer = text.tokenizer
    tokenizer.no_padding()
    tokenizer.enable_truncation(text.tokens)
    found = tokenizer.encode_batch(cut[0] if len(cut) == 1 else list(zip(*cut, strict=True)))
    ids = torch.full((len(found), text.tokens), text.pad)
    mask, kinds = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, encoding in enumerate(found):
        ids[row, : len(encoding.ids)] = torch.tensor(encoding.ids)
        mask[row, : len(encoding.ids)] = 1
        kinds[row, : len(encoding.ids)] = torch.tensor(encoding.type_ids)
    inputs = {"input_ids": ids, "attention_mask": mask}
    return {**inputs, "token_type_ids": kinds} if bool(kinds.any()) else inputs
