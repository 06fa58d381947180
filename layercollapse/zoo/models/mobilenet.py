"""MobileNetV2 (Sandler et al., arXiv 1801.04381): 35 ReLU6 sites, depth 53."""

from __future__ import annotations

from torch import Tensor, nn

from layercollapse.zoo.models.sizes import ImageSize, sides

# (expansion, channels at width 32, blocks, stride of the first block)
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
LAST_CHANNELS = 1280


def _scaled(channels: int, width: int) -> int:
    """Channels at this width: the nearest multiple of 8, at least 8, and never below 90 % (as published)."""
    exact = channels * width / 32
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


def _conv_bn_relu6(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1; a skip where the shapes allow it, with no rectifier after it."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_conv_bn_relu6(in_channels, hidden, 1)]
        layers += [
            _conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)
        self.skip = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.skip else self.conv(x)


class MobileNetV2(nn.Module):
    """(N, in_channels, height, width) -> logits (N, num_classes).

    A published stride of 2 becomes 1 once the map is 4 wide or less, so that 28x28 images keep some space.
    """

    def __init__(self, *, num_classes: int, in_channels: int, image_size: ImageSize, width: int) -> None:
        super().__init__()
        channels = _scaled(32, width)
        layers: list[nn.Module] = [_conv_bn_relu6(in_channels, channels, 3, stride=2)]
        side = (min(sides(image_size)) + 1) // 2
        for expansion, base, blocks, published_stride in STAGES:
            out_channels = _scaled(base, width)
            for block in range(blocks):
                stride = published_stride if block == 0 and side > 4 else 1
                layers.append(InvertedResidual(channels, out_channels, stride, expansion))
                side = -(-side // stride)
                channels = out_channels
        last = _scaled(LAST_CHANNELS, width)
        layers.append(_conv_bn_relu6(channels, last, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(last, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))
