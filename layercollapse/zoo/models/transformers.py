"""Small transformers, from the configurations of `transformers`: four blocks (Swin: two and two), random weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from layercollapse.errors import LayerCollapseError, require
from layercollapse.graph.export import reason
from layercollapse.zoo.models.wanted import Wanted

HEAD = 16  # channels of an attention head
WIDTHS = {"vit": 64, "swin": 32, "bert": 64, "roberta": 64}
PATCHES = (16, 8, 7, 4, 2, 1)  # sides of a patch
FEWEST = 16  # patches of an image


def vit(wanted: Wanted) -> nn.Module:
    """Images (N, C, H, W) -> logits; 16 patches or more."""
    channels, height, width = wanted.images("vit")
    patch = next((p for p in PATCHES if height % p == width % p == 0 and height * width >= FEWEST * p * p), 1)
    return _made(
        "vit",
        wanted,
        "ViTConfig",
        "ViTForImageClassification",
        image_size=(height, width),
        patch_size=patch,
        num_channels=channels,
        **_blocks(_width("vit", wanted)),
    )


def swin(wanted: Wanted) -> nn.Module:
    """Images (N, C, H, W) -> logits; windows of up to 4x4 patches of 2x2 pixels, or 4x4 from 64 pixels on."""
    channels, height, width = wanted.images("swin")
    side, patch = _width("swin", wanted), 4 if min(height, width) >= 64 else 2
    return _made(
        "swin",
        wanted,
        "SwinConfig",
        "SwinForImageClassification",
        image_size=(height, width),
        patch_size=patch,
        num_channels=channels,
        embed_dim=side,
        depths=[2, 2],
        num_heads=[side // HEAD, 2 * side // HEAD],
        window_size=max(1, min(4, min(height, width) // (2 * patch))),  # no more than the second stage has
    )


def bert(wanted: Wanted) -> nn.Module:
    """Token numbers (N, tokens) with their attention mask -> logits; GELU."""
    text = wanted.texts("bert")
    return _made(
        "bert",
        wanted,
        "BertConfig",
        "BertForSequenceClassification",
        vocab_size=text.vocabulary,
        pad_token_id=text.pad,
        max_position_embeddings=text.tokens,
        **_blocks(_width("bert", wanted)),
    )


def roberta(wanted: Wanted) -> nn.Module:
    """Token numbers (N, tokens) with their attention mask -> logits; GELU."""
    text = wanted.texts("roberta")
    return _made(
        "roberta",
        wanted,
        "RobertaConfig",
        "RobertaForSequenceClassification",
        vocab_size=text.vocabulary,
        pad_token_id=text.pad,
        max_position_embeddings=text.tokens + text.pad + 1,  # positions count from behind the padding's number
        type_vocab_size=2,  # pairs of texts
        **_blocks(_width("roberta", wanted)),
    )


TRANSFORMERS = {"vit": vit, "swin": swin, "bert": bert, "roberta": roberta}


def _width(name: str, wanted: Wanted) -> int:
    width = wanted.width or WIDTHS[name]
    if width < HEAD or width % HEAD:
        raise LayerCollapseError(f"width: expected a multiple of {HEAD} for {name!r}, got {width}")
    return width


def _blocks(width: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": 4,
        "num_attention_heads": width // HEAD,
        "intermediate_size": 4 * width,
    }


def _made(name: str, wanted: Wanted, config: str, model: str, **values: Any) -> nn.Module:
    """A model of a configuration with what the user asked for on top."""
    transformers = require("transformers", "text")
    try:
        kind, build = getattr(transformers, config), getattr(transformers, model)
    except Exception as error:  # it imports what it needs when it is asked, and something there may not import
        raise LayerCollapseError(f"model: importing transformers' {model} stopped with {reason(error)}") from error
    known = set(kind().to_dict()) | set(values)
    if unknown := [key for key in wanted.args if key not in known]:
        raise LayerCollapseError(f"model_args: expected keys of {config}, got {', '.join(unknown)} for {name!r}")
    try:
        return build(kind(num_labels=wanted.num_classes, **{**values, **wanted.args}))
    except (TypeError, ValueError, KeyError) as error:
        raise LayerCollapseError(f"model_args: {config} stopped with {type(error).__name__}: {error}") from error
