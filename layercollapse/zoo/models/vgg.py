"""VGG-16 with batch norm (Simonyan and Zisserman, arXiv 1409.1556): 15 rectifier sites, depth 16."""

from __future__ import annotations

from torch import Tensor, nn

from layercollapse.zoo.models.sizes import ImageSize, sides

STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # (channels as a multiple of the width, convolutions)


class VGG16BN(nn.Module):
    """(N, in_channels, height, width) -> logits (N, num_classes).

    A stage ends with a 2x2 max-pool only while its map is at least 4 wide, so 28x28 and 8x8 images work.
    The two hidden fully connected layers have 8 * width units, the usual size for small images.
    """

    def __init__(self, *, num_classes: int, in_channels: int, image_size: ImageSize, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        side = min(sides(image_size))
        for multiple, convolutions in STAGES:
            for _ in range(convolutions):
                channels = multiple * width
                layers += [
                    nn.Conv2d(in_channels, channels, 3, padding=1),
                    nn.BatchNorm2d(channels),
                    nn.ReLU(inplace=True),
                ]
                in_channels = channels
            if side >= 4:
                layers.append(nn.MaxPool2d(2))
                side //= 2
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        hidden = 8 * width
        self.classifier = nn.Sequential(
            nn.Linear(in_channels, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))
