"""The networks of the command line: plain `nn.Module` code, small enough to read and to train on two cores.

    model = build("resnet18", num_classes=10, in_channels=1, image_size=28, width=16)

Nothing in the rest of the package depends on these classes: they are written the way users write theirs
(one in-place ReLU called twice in a residual block, `nn.Sequential` stacks, ReLU6), so that whatever works on
them works on models from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo.models.mlp import MLP
from layercollapse.zoo.models.mobilenet import MobileNetV2
from layercollapse.zoo.models.resnet import ResNet18
from layercollapse.zoo.models.sizes import ImageSize, sides
from layercollapse.zoo.models.vgg import VGG16BN

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": ResNet18,
    "vgg16_bn": VGG16BN,
    "mobilenet_v2": MobileNetV2,
    "mlp": MLP,
}


def build(
    name: str, *, num_classes: int = 10, in_channels: int = 1, image_size: ImageSize = 28, width: int = 16
) -> nn.Module:
    """Build a network with freshly initialised weights (torch's global generator).

    Args:
        name: one of `MODELS`.
        num_classes: number of logits.
        in_channels: channels of the images, shape (N, in_channels, height, width).
        image_size: side of the images in pixels, or height and width, at least 8.
        width: channels of the first stage; 64 gives the published ResNet-18 and VGG-16, 32 MobileNetV2.

    Raises:
        LayerCollapseError: unknown name, or a size below its minimum.
    """
    if name not in MODELS:
        raise LayerCollapseError(f"model: expected one of {', '.join(MODELS)}, got {name!r}")
    minimum = {"num_classes": 1, "in_channels": 1, "image_size": 8, "width": 1}
    given = {
        "num_classes": num_classes,
        "in_channels": in_channels,
        "image_size": min(sides(image_size)),
        "width": width,
    }
    for argument, value in given.items():
        if value < minimum[argument]:
            raise LayerCollapseError(f"{argument}: expected at least {minimum[argument]}, got {value}")
    return MODELS[name](**{**given, "image_size": image_size})


__all__ = ["MLP", "MODELS", "VGG16BN", "MobileNetV2", "ResNet18", "build"]
