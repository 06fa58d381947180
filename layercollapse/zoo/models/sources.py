"""Models by name: built-in ones, those of torchvision, timm and transformers, exported programs, and one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo import factory
from layercollapse.zoo.data.split import Text
from layercollapse.zoo.data.text import TOKENS
from layercollapse.zoo.data.tokenizer import WORDS
from layercollapse.zoo.models import MODELS, exported, huggingface, timm, torchvision
from layercollapse.zoo.models import build as build_network
from layercollapse.zoo.models.transformers import TRANSFORMERS, WIDTHS
from layercollapse.zoo.models.wanted import Built, Wanted

# What a network is for where there are no data: MNIST's images and classes, or ImageNet's; and words of a language.
SMALL, CLASSES = (1, 28, 28), 10
IMAGENET, IMAGENET_CLASSES = (3, 224, 224), 1000
TEXTS = ("bert", "roberta")
WIDTH = 16  # of the built-in networks but the transformers

# What stands before the colon -> how a model of the name behind it is built.
SOURCES: dict[str, Callable[[str, Wanted], Built]] = {
    "torchvision": torchvision.build,
    "timm": timm.build,
    "hf": huggingface.build,
}


def forms() -> str:
    """The names of all kinds of models, as they are written."""
    names = [*MODELS, *TRANSFORMERS, *(f"{kind}:NAME" for kind in SOURCES if kind != "hf")]
    return f"{', '.join(names)}, hf:FOLDER, package.module:function or FILE{exported.SUFFIX}"


def built_in(spec: str) -> bool:
    """Whether a model is one of the package's own, which have a width."""
    return spec in MODELS or spec in TRANSFORMERS


def width_of(spec: str, width: int | None) -> int | None:
    """The width of a built-in model; that of others is None, unless the user gave one."""
    return (width or WIDTHS.get(spec, WIDTH)) if built_in(spec) and width is None else width


def build(spec: str, wanted: Wanted) -> Built:
    """A model for the data, with fresh weights (torch's global generator) or those in its folder or file.

    Args:
        spec: see `forms`.
        wanted: what the data ask for, and what the user does.

    Raises:
        LayerCollapseError: no such model, or it does not fit the data.
    """
    if spec in MODELS:
        if wanted.args:
            raise LayerCollapseError(f"model_args: expected none for {spec!r}, got {', '.join(wanted.args)}")
        channels, height, width = wanted.images(spec)
        return Built(
            build_network(
                spec,
                num_classes=wanted.num_classes,
                in_channels=channels,
                image_size=height if height == width else (height, width),
                width=WIDTH if wanted.width is None else wanted.width,
            )
        )
    if spec in TRANSFORMERS:
        return Built(TRANSFORMERS[spec](wanted))
    if spec.endswith(exported.SUFFIX):
        return exported.build(spec, wanted)
    kind, colon, name = spec.partition(":")
    if kind in SOURCES and name:
        return SOURCES[kind](name, wanted)
    if not colon:
        raise LayerCollapseError(f"model: expected one of {forms()}, got {spec!r}")
    return _own(spec, wanted)


def _own(spec: str, wanted: Wanted) -> Built:
    """What a function or class of the user's returns."""
    function = factory.find(spec, "model")
    offered: dict[str, Any] = {"num_classes": wanted.num_classes, "width": wanted.width}
    if wanted.shape is not None:
        channels, height, width = wanted.shape
        offered |= {"in_channels": channels, "image_size": height if height == width else (height, width)}
    if wanted.text is not None:
        offered |= {"vocab_size": wanted.text.vocabulary, "pad_token_id": wanted.text.pad, "tokens": wanted.text.tokens}
    model = factory.call(function, offered, wanted.args, "model")
    if not isinstance(model, nn.Module):
        raise LayerCollapseError(f"model: expected a torch.nn.Module from {spec}, got a {type(model).__name__}")
    return Built(model)


def assumed(
    spec: str,
    shape: tuple[int, int, int] | None = None,
    *,
    tokens: int = TOKENS,
    width: int | None = None,
    args: dict[str, Any] | None = None,
) -> Wanted:
    """What a model is built for where there are no data, only its name.

    Args:
        spec: see `forms`; no file.
        shape: (channels, height, width) of images. None: what the network was made for (1x28x28 of the built-in ones).
        tokens: of a text.
        width: as for `Wanted`.
        args: as for `Wanted`.

    Raises:
        LayerCollapseError: nobody knows what it takes.
    """
    kind, colon, name = spec.partition(":")
    given: dict[str, Any] = {"width": width, "args": args or {}}
    if spec in TEXTS:
        return Wanted(CLASSES, text=Text(None, WORDS, 0, tokens), **given)
    if built_in(spec):
        return Wanted(CLASSES, shape or SMALL, **given)
    if kind in ("torchvision", "timm") and name:
        own = timm.shape(name) if kind == "timm" and shape is None else shape
        return Wanted(IMAGENET_CLASSES, own or IMAGENET, **given)
    if kind == "hf" and name:
        return huggingface.assumed(name, shape, tokens, given["args"])
    if colon and shape is None:
        raise LayerCollapseError(
            f"input: expected the size of an image, as --input 3x224x224, or --data, for {spec}, got none"
        )
    return Wanted(CLASSES, shape, **given)


def tokenizer(spec: str) -> str | None:
    """Where a model's own tokenizer is, if it has one."""
    kind, _, name = spec.partition(":")
    return huggingface.tokenizer(name) if kind == "hf" else None
