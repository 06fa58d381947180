"""Sizes of images as networks are asked for them: a side of square ones, or height and width."""

from __future__ import annotations

from typing import TypeAlias

ImageSize: TypeAlias = "int | tuple[int, int]"


def sides(image_size: ImageSize) -> tuple[int, int]:
    """Height and width in pixels."""
    return (image_size, image_size) if isinstance(image_size, int) else image_size
