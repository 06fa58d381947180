"""Networks of torchvision and of timm: as many classes as the data have, any number of channels."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo.models import sources
from layercollapse.zoo.models.wanted import Wanted
from public_networks import torchvision_or_skip

pytestmark = pytest.mark.architectures


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("torchvision:resnet18", (3, 32, 48)),
        ("torchvision:mobilenet_v2", (1, 32, 32)),
        ("torchvision:vit_b_16", (3, 32, 32)),
        ("timm:resnet18", (1, 32, 48)),
        ("timm:vit_tiny_patch16_224", (3, 32, 48)),
    ],
)
def test_networks_for_the_data(spec: str, shape: tuple) -> None:
    torchvision_or_skip()
    if spec.startswith("timm") and importlib.util.find_spec("timm") is None:
        pytest.skip("needs timm")
    model = sources.build(spec, Wanted(7, shape)).model.eval()
    assert model(torch.randn(2, *shape)).shape == (2, 7)


def test_what_is_wrong() -> None:
    torchvision_or_skip()
    wanted = Wanted(7, (3, 32, 32))
    with pytest.raises(
        LayerCollapseError, match=r"model: expected one of torchvision's, as .*resnet18.*, got 'resnet19'"
    ):
        sources.build("torchvision:resnet19", wanted)
    with pytest.raises(LayerCollapseError, match="width: expected only with the built-in networks"):
        sources.build("torchvision:resnet18", Wanted(7, (3, 32, 32), width=8))
    with pytest.raises(LayerCollapseError, match=r"model: torchvision:resnet18 stopped with .*depth"):
        sources.build("torchvision:resnet18", Wanted(7, (3, 32, 32), args={"depth": 8}))
    with pytest.raises(
        LayerCollapseError, match=r"input: expected square images for torchvision:vit_b_16, got 32 by 16"
    ):
        sources.build("torchvision:vit_b_16", Wanted(7, (3, 32, 16)))
    if importlib.util.find_spec("timm") is not None:
        with pytest.raises(
            LayerCollapseError, match=r"model: expected one of timm.list_models\(\), as resn.*'resnet19'"
        ):
            sources.build("timm:resnet19", wanted)
