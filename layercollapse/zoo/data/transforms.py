"""From a picture to a tensor: resized, cropped, normalised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layercollapse.errors import LayerCollapseError

MODES = {1: "L", 3: "RGB"}  # Pillow's name by number of channels
CROPS = ("center", "random", "resized")
NORMALIZE = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # mean and deviation, of pixels from 0 to 1
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
MEASURED = 2000  # images whose mean and deviation are taken for those of all
SCALE, RATIO = (0.25, 1.0), (3 / 4, 4 / 3)  # of a `resized` crop: its share of the area, its width by its height


@dataclass(frozen=True)
class Transform:
    """From a picture to a tensor (C, H, W) float32.

    Attributes:
        shape: what comes out: channels (1: grey, 3: colours), height, width.
        resize: the shorter side in pixels before the crop; None: as little as covers the crop.
        crop: where a training image is cropped: ``"center"``, ``"random"`` (anywhere), or ``"resized"`` (a random part
            of a quarter of its area or more, resized).
        mean: of each channel, of pixels from 0 to 1; taken off.
        deviation: of each channel; divided by.
        training: whether crops are left to chance.
    """

    shape: tuple[int, int, int]
    resize: int | None = None
    crop: str = "center"
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)
    training: bool = False

    def __call__(self, picture: Any) -> Tensor:
        """Convert, resize, crop and normalise a picture of Pillow."""
        return (self.pixels(picture) - self._column(self.mean)) / self._column(self.deviation)

    def pixels(self, picture: Any) -> Tensor:
        """The same, not normalised: (C, H, W) from 0 to 1."""
        channels, height, width = self.shape
        picture = picture.convert(MODES[channels])
        if self.training and self.crop == "resized":
            picture = picture.resize((width, height), box=self._random_part(*picture.size))
        elif picture.size != (width, height) or self.resize:
            picture = self._cropped(self._resized(picture))
        array = np.asarray(picture, dtype=np.float32).reshape(height, width, channels)
        return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))).div_(255)

    def _resized(self, picture: Any) -> Any:
        _, height, width = self.shape
        side = self.resize or 0
        # The shorter side becomes `side`, and never less than what covers the crop.
        factor = max(side / min(picture.size), width / picture.size[0], height / picture.size[1])
        return picture.resize(tuple(max(1, round(size * factor)) for size in picture.size))

    def _cropped(self, picture: Any) -> Any:
        _, height, width = self.shape
        left, top = picture.size[0] - width, picture.size[1] - height
        if self.training and self.crop == "random":
            left, top = (int(torch.randint(room + 1, ())) for room in (left, top))
        else:
            left, top = left // 2, top // 2
        return picture.crop((left, top, left + width, top + height))

    @staticmethod
    def _random_part(width: int, height: int) -> tuple[float, float, float, float]:
        area = width * height * float(torch.empty(()).uniform_(*SCALE))
        ratio = float(torch.empty(()).uniform_(float(np.log(RATIO[0])), float(np.log(RATIO[1]))).exp())
        w, h = min(width, (area * ratio) ** 0.5), min(height, (area / ratio) ** 0.5)
        left, top = float(torch.rand(())) * (width - w), float(torch.rand(())) * (height - h)
        return left, top, left + w, top + h

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1)

    @property
    def box(self) -> tuple[float, float]:
        """Black and white after the normalisation, the lowest and highest of any channel."""
        low = min(-m / d for m, d in zip(self.mean, self.deviation, strict=True))
        high = max((1 - m) / d for m, d in zip(self.mean, self.deviation, strict=True))
        return low, high


def parsed_shape(text: str) -> tuple[int, int, int]:
    """Channels, height and width of "3x224x224".

    Raises:
        LayerCollapseError: it is not of this form.
    """
    sizes = text.lower().split("x")
    if len(sizes) != 3 or not all(size.isdecimal() and int(size) for size in sizes) or int(sizes[0]) not in MODES:
        raise LayerCollapseError(
            f"input: expected CHANNELSxHEIGHTxWIDTH with 1 or 3 channels, as 3x224x224, got {text!r}"
        )
    channels, height, width = map(int, sizes)
    return channels, height, width


def normalised(transform: Transform, normalize: str, pictures: Sequence[Callable[[], Any]]) -> Transform:
    """A transform with a mean and a deviation of each channel.

    Args:
        transform: without.
        normalize: ``"data"`` measures them, a name of `NORMALIZE` is looked up, and MEAN/DEVIATION says them: each a
            number, or one for each channel with commas between.
        pictures: open the training images.

    Raises:
        LayerCollapseError: it is none of these.
    """
    channels = transform.shape[0]
    if normalize == "data":
        return _measured(transform, pictures)
    if normalize in NORMALIZE:
        mean, deviation = (values[:channels] for values in NORMALIZE[normalize])
        return replace(transform, mean=mean, deviation=deviation)
    try:
        mean, deviation = (tuple(map(float, part.split(","))) for part in normalize.split("/"))
        mean, deviation = (values * channels if len(values) == 1 else values for values in (mean, deviation))
        good = len(mean) == len(deviation) == channels and all(d > 0 for d in deviation)
    except ValueError:
        good = False
    if not good:
        raise LayerCollapseError(
            f"normalize: expected data, {', '.join(NORMALIZE)}, or MEAN/DEVIATION of {channels} channels, "
            f"got {normalize!r}"
        )
    return replace(transform, mean=mean, deviation=deviation)


def _measured(transform: Transform, pictures: Sequence[Callable[[], Any]]) -> Transform:
    """With mean and deviation of every channel over training images, evenly chosen, in double precision."""
    step = -(-len(pictures) // MEASURED)
    sums = torch.zeros(2, transform.shape[0], dtype=torch.float64)
    count = 0
    for opened in pictures[::step]:
        with opened() as picture:
            pixels = transform.pixels(picture).double().flatten(1)
        sums += torch.stack([pixels.sum(1), pixels.square().sum(1)])
        count += pixels.shape[1]
    mean = sums[0] / count
    deviation = (sums[1] / count - mean.square()).clamp(min=0).sqrt()
    deviation[deviation == 0] = 1
    return replace(transform, mean=tuple(mean.tolist()), deviation=tuple(deviation.tolist()))
