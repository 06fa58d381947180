"""What the data ask of a model, and what a source of models gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo.data.split import DataSet, Text


@dataclass(frozen=True)
class Wanted:
    """What a model must have to fit the data, and what the user asked for.

    Attributes:
        num_classes: number of logits.
        shape: (channels, height, width) of images, if it is images.
        text: about texts, if it is texts.
        width: as the user gave it; None is the model's own.
        args: arguments for the model by name, as the user gave them.
    """

    num_classes: int
    shape: tuple[int, int, int] | None = None
    text: Text | None = None
    width: int | None = None
    args: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, data: DataSet, width: int | None, args: dict[str, Any]) -> Wanted:
        """What a data set asks for."""
        return cls(data.num_classes, data.shape, data.text, width, args)

    def images(self, model: str) -> tuple[int, int, int]:
        """The shape of images.

        Raises:
            LayerCollapseError: the data are no images.
        """
        if self.shape is None:
            raise LayerCollapseError(
                f"model: expected one for {'texts' if self.text else 'such inputs'}, got {model!r}"
            )
        return self.shape

    def texts(self, model: str) -> Text:
        """What there is to know of texts.

        Raises:
            LayerCollapseError: the data are no texts.
        """
        if self.text is None:
            raise LayerCollapseError(f"model: expected one for images, got {model!r}, which reads texts")
        return self.text

    def example(self) -> tuple[Tensor, ...] | dict[str, Tensor]:
        """Two samples of such a shape: zeros (2, C, H, W), or token numbers (2, tokens) with their attention mask.

        Raises:
            LayerCollapseError: they are neither images nor texts.
        """
        if self.text is not None:
            words = torch.full((2, self.text.tokens), (self.text.pad + 1) % self.text.vocabulary)
            return {"input_ids": words, "attention_mask": torch.ones_like(words)}
        return (torch.zeros(2, *self.images("it")),)

    def without_width(self, model: str) -> None:
        """Refuse a width.

        Raises:
            LayerCollapseError: one was given.
        """
        if self.width is not None:
            raise LayerCollapseError(
                f"width: expected only with the built-in networks, got {self.width} with {model!r}"
            )


@dataclass(frozen=True)
class Built:
    """A model, and whether its weights are trained ones."""

    model: nn.Module
    pretrained: bool = False
