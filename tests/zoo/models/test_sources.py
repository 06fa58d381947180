"""Models by name: each kind built for the data, and what is wrong with a name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo.data.split import Text
from layercollapse.zoo.models import sources
from layercollapse.zoo.models.wanted import Wanted

IMAGES = Wanted(num_classes=3, shape=(3, 16, 24))
TEXTS = Wanted(num_classes=3, text=Text(None, 50, 0, 12))


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn", "mobilenet_v2", "mlp"])
def test_built_in_networks_take_images_that_are_not_square(name: str) -> None:
    built = sources.build(name, IMAGES)
    assert not built.pretrained
    assert built.model.eval()(torch.randn(2, 3, 16, 24)).shape == (2, 3)


def test_widths() -> None:
    assert sources.width_of("resnet18", None) == 16
    assert sources.width_of("bert", None) == 64
    assert sources.width_of("bert", 32) == 32
    assert sources.width_of("timm:resnet18", None) is None
    narrow = sources.build("mlp", Wanted(3, (1, 8, 8), width=2)).model
    assert narrow.layers.head.in_features == 16


def test_a_function_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    code = "from torch import nn\ndef net(num_classes, in_channels, image_size, hidden=4):\n"
    code += "    side = in_channels * image_size[0] * image_size[1]\n"
    code += (
        "    return nn.Sequential(nn.Flatten(), nn.Linear(side, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))\n"
    )
    code += "def words(vocab_size, tokens, pad_token_id):\n    return nn.Embedding(vocab_size, tokens)\n"
    code += "number = int\n"
    (tmp_path / "my_networks_of_sources.py").write_text(code)
    model = sources.build("my_networks_of_sources:net", IMAGES).model
    assert model(torch.randn(2, 3, 16, 24)).shape == (2, 3)
    wide = sources.build("my_networks_of_sources:net", Wanted(3, (3, 16, 24), args={"hidden": 9})).model
    assert wide[1].out_features == 9
    embedding = sources.build("my_networks_of_sources:words", TEXTS).model
    assert isinstance(embedding, nn.Embedding)
    assert (embedding.num_embeddings, embedding.embedding_dim) == (50, 12)
    with pytest.raises(LayerCollapseError, match=r"model: expected a torch.nn.Module from .*:number, got a int"):
        sources.build("my_networks_of_sources:number", IMAGES)


@pytest.mark.parametrize(
    ("spec", "wanted", "message"),
    [
        (
            "resnet19",
            IMAGES,
            "model: expected one of resnet18, .*, timm:NAME, hf:FOLDER, .* or FILE.pt2, got 'resnet19'",
        ),
        ("resnet18", TEXTS, "model: expected one for texts, got 'resnet18'"),
        ("resnet18", Wanted(3), "model: expected one for such inputs, got 'resnet18'"),
        ("resnet18", Wanted(3, (3, 8, 8), args={"a": 1}), "model_args: expected none for 'resnet18', got a"),
        ("vim:tiny", IMAGES, "model: expected a module to import in 'vim:tiny', got no 'vim' in "),
        ("hf:nowhere", IMAGES, "model: expected a folder with config.json, or such a file, got nowhere"),
        ("hf:nowhere", Wanted(3, (3, 8, 8), width=8), "width: expected only with the built-in networks, got 8"),
        ("nowhere.pt2", IMAGES, "model: expected a program of torch.export in nowhere.pt2, got: "),
        ("nowhere.pt2", Wanted(3, args={"a": 1}), "model_args: expected none for an exported program, got a"),
    ],
)
def test_what_is_wrong(spec: str, wanted: Wanted, message: str) -> None:
    if spec.startswith("hf:"):
        pytest.importorskip("transformers")
    with pytest.raises(LayerCollapseError, match=message):
        sources.build(spec, wanted)


def test_what_is_assumed_without_data() -> None:
    assert sources.assumed("resnet18") == Wanted(10, (1, 28, 28))
    assert sources.assumed("vit", (3, 8, 8), width=32) == Wanted(10, (3, 8, 8), width=32)
    assert sources.assumed("bert", tokens=5).text == Text(None, 8192, 0, 5)
    assert sources.assumed("torchvision:resnet50", args={"a": 1}) == Wanted(1000, (3, 224, 224), args={"a": 1})
    assert sources.assumed("mine:Net", (3, 8, 8)) == Wanted(10, (3, 8, 8))
    with pytest.raises(LayerCollapseError, match="input: expected the size of an image"):
        sources.assumed("mine:Net")
