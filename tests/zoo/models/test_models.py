import pytest
import torch
from torch import nn

from layercollapse.errors import LayerCollapseError
from layercollapse.graph.capture import capture
from layercollapse.zoo.models import MODELS, build

SITES = {"resnet18": 17, "vgg16_bn": 15, "mobilenet_v2": 35, "mlp": 4}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("image_size", [8, 28, 33])
def test_published_number_of_sites_at_every_image_size(name, image_size):
    model = build(name, num_classes=7, in_channels=3, image_size=image_size, width=4).eval()
    images = torch.randn(2, 3, image_size, image_size)
    assert model(images).shape == (2, 7)
    assert len(capture(model, (images,)).sites) == SITES[name]


@pytest.mark.parametrize("name", MODELS)
def test_every_sample_is_classified_by_itself(name):
    torch.manual_seed(0)
    model = build(name, image_size=8, width=4).eval()
    images = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(model(images)[3:4], model(images[3:4]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "width", "parameters"),
    # Published counts for ImageNet, less the stem (ResNet: 3x3 instead of 7x7) and the classifiers that differ.
    [("resnet18", 64, 11_689_512 - 9_408 + 64 * 3 * 9), ("mobilenet_v2", 32, 3_504_872)],
)
def test_published_number_of_parameters(name, width, parameters):
    model = build(name, num_classes=1000, in_channels=3, image_size=224, width=width)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_vgg_has_the_published_convolutions():
    model = build("vgg16_bn", in_channels=3, image_size=224, width=64)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert sum(module.weight.numel() + module.bias.numel() for module in convolutions) == 14_714_688
    assert sum(isinstance(module, nn.MaxPool2d) for module in model.modules()) == 5


def test_weights_follow_the_seed():
    torch.manual_seed(3)
    first = build("resnet18", width=2).state_dict()
    torch.manual_seed(3)
    second = build("resnet18", width=2).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "resnet19"}, "model: expected one of resnet18, .* got 'resnet19'"),
        ({"width": 0}, "width: expected at least 1, got 0"),
        ({"image_size": 7}, "image_size: expected at least 8, got 7"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(LayerCollapseError, match=message):
        build(**{"name": "mlp", **change})
