"""A multilayer perceptron: 4 rectifier sites, depth 5. The smallest network on which everything happens."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from layercollapse.zoo.models.sizes import ImageSize, sides

HIDDEN_LAYERS = 4


class MLP(nn.Module):
    """(N, in_channels, height, width) -> logits (N, num_classes), through 4 layers of 8 * width units."""

    def __init__(self, *, num_classes: int, in_channels: int, image_size: ImageSize, width: int) -> None:
        super().__init__()
        pixels = sides(image_size)[0] * sides(image_size)[1]
        sizes = [in_channels * pixels] + [8 * width] * HIDDEN_LAYERS
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for index in range(HIDDEN_LAYERS):
            layers[f"fc{index + 1}"] = nn.Linear(sizes[index], sizes[index + 1])
            layers[f"relu{index + 1}"] = nn.ReLU()
        layers["head"] = nn.Linear(sizes[-1], num_classes)
        self.layers = nn.Sequential(layers)
        for module in self.modules():
            if isinstance(module, nn.Linear):  # torch's default shrinks the signal from layer to layer
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
