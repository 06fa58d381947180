"""What users do with a collapsed model: compile it, train it, export it, read it; and patterns of other libraries."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import layercollapse as lc
from layercollapse.compiler.backend.modules import ConstantMap
from layercollapse.zoo import models

IMAGES = torch.linspace(-1, 1, 4 * 3 * 16 * 16).reshape(4, 3, 16, 16).sin()


class ConvNormAct(nn.Module):
    """timm: the batch norm holds the rectifier, given as a class."""

    def __init__(self, inputs: int, outputs: int, act_layer: Callable[..., nn.Module], stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn = NormAct(outputs, act_layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class NormAct(nn.BatchNorm2d):
    def __init__(self, channels: int, act_layer: Callable[..., nn.Module]) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), act_layer(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return self.act(self.drop(x))


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.bernoulli(torch.full((len(x),) + (1,) * (x.ndim - 1), 0.9, device=x.device)) / 0.9


class LayerScale(nn.Module):
    def __init__(self, channels: int, inplace: bool) -> None:
        super().__init__()
        self.inplace, self.gamma = inplace, nn.Parameter(torch.linspace(0.1, 0.3, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.gamma) if self.inplace else x * self.gamma


class Mlp(nn.Module):
    def __init__(self, channels: int, act_layer: Callable[..., nn.Module], use_conv: bool = False) -> None:
        super().__init__()
        layer = (lambda a, b: nn.Conv2d(a, b, 1)) if use_conv else nn.Linear
        self.fc1, self.act, self.drop1 = layer(channels, 4 * channels), act_layer(), nn.Dropout(0.1)
        self.norm, self.fc2, self.drop2 = nn.Identity(), layer(4 * channels, channels), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.norm(self.drop1(self.act(self.fc1(x))))))


class Block(nn.Module):
    """timm: a transformer block's second half, with layer scale and stochastic depth."""

    def __init__(self, channels: int, inplace: bool = False) -> None:
        super().__init__()
        self.norm2, self.mlp = nn.LayerNorm(channels), Mlp(channels, nn.ReLU)
        self.ls2, self.drop_path2 = LayerScale(channels, inplace), DropPath()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class Tokens(nn.Module):
    """timm's ViT in small: patches, blocks, the mean of the tokens."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.patch_embed, self.pos_embed = nn.Conv2d(3, 8, 4, 4), nn.Parameter(0.1 * torch.randn(1, 16, 8))
        self.blocks = nn.Sequential(Block(8, inplace), Block(8, inplace))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed
        return self.head(self.norm(self.blocks(x)).mean(1))


class ConvNeXtBlock(nn.Module):
    """timm and torchvision: a depthwise convolution, then an MLP over channels-last maps; one shared rectifier."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__()
        self.conv_dw, self.norm = nn.Conv2d(channels, channels, 7, padding=3, groups=channels), nn.LayerNorm(channels)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(channels, 32), act, nn.Linear(32, channels)
        self.gamma, self.drop_path = nn.Parameter(torch.full((channels,), 0.5)), DropPath()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv_dw(x).permute(0, 2, 3, 1))
        y = self.pwconv2(self.act(self.pwconv1(y))).mul(self.gamma)
        return self.drop_path(y.permute(0, 3, 1, 2)) + x


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        act = nn.ReLU()
        self.stem, self.stages = nn.Conv2d(3, 8, 2, 2), nn.Sequential(ConvNeXtBlock(8, act), ConvNeXtBlock(8, act))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((-2, -1)))


class DenseLayer(nn.Module):
    """torchvision's DenseNet: norm, rectifier, convolution, in this order and twice; in place, over a list of maps."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm1, self.relu1, self.conv1 = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.Conv2d(inputs, 8, 1)
        self.norm2, self.relu2, self.conv2 = nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.conv2(self.relu2(self.norm2(self.conv1(self.relu1(self.norm1(torch.cat(maps, 1)))))))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.layers = nn.Conv2d(3, 6, 3, 2, 1), nn.ModuleList(DenseLayer(6 + 4 * i) for i in range(3))
        self.norm5, self.classifier = nn.BatchNorm2d(18), nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.conv0(x)]
        for layer in self.layers:
            maps.append(layer(maps))
        x = F.relu(self.norm5(torch.cat(maps, 1)), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


class SqueezeExcite(nn.Module):
    """timm and torchvision: a gate of two 1x1 convolutions over the pooled map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_reduce, self.act1 = nn.Conv2d(channels, 4, 1), nn.ReLU(inplace=True)
        self.conv_expand, self.gate = nn.Conv2d(4, channels, 1), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.conv_expand(self.act1(self.conv_reduce(x.mean((2, 3), keepdim=True)))))


class Mobile(nn.Module):
    """timm: rectifiers from a class, a squeeze-and-excite gate, a dropout by function, a head in a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = ConvNormAct(3, 8, nn.ReLU6, stride=2)
        self.blocks = nn.Sequential(ConvNormAct(8, 8, nn.ReLU), SqueezeExcite(8), ConvNormAct(8, 8, nn.Hardtanh))
        self.global_pool, self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.global_pool(self.blocks(self.conv_stem(x)))
        return self.classifier(F.dropout(x, 0.2, training=self.training))


# name -> model, the layer whose weights are cleared, sites, sites that collapse, layers with weights that go
PATTERNS: dict[str, tuple[Callable[[], nn.Module], str, int, int, int]] = {
    "torchvision resnet": (
        lambda: models.build("resnet18", in_channels=3, image_size=16, width=4),
        "layer2.1.conv1",
        17,
        1,
        2,
    ),
    "timm transformer": (Tokens, "blocks.1.mlp.fc1", 2, 1, 2),
    "timm transformer, in place": (lambda: Tokens(inplace=True), "blocks.0.mlp.fc1", 2, 1, 2),
    "convnext, one rectifier": (ConvNeXt, "stages.1.pwconv1", 2, 1, 3),
    "densenet": (Dense, "layers.1.conv1", 7, 2, 2),
    "norm with rectifier": (Mobile, "blocks.1.conv_reduce", 4, 1, 2),
}


def awake(model: nn.Module) -> nn.Module:
    """Biases and batch norms with values of a trained network rather than zeros and ones."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.ndim == 1:
            value.data.add_(0.2 * torch.rand_like(value) - (0.1 if "var" not in name else 0.0))
    return model.eval()


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_of_other_libraries(name: str, tmp_path: Path) -> None:
    build, dead, sites, collapsed, gone = PATTERNS[name]
    torch.manual_seed(0)
    model = awake(build())
    model.get_submodule(dead).weight.data.zero_()
    result = lc.collapse(model, IMAGES, None, cost="macs")
    assert (len(result.sites), len(result.collapsed)) == (sites, collapsed), result.explain()
    assert result.before.depth - result.after.depth == gone, result.model
    result.save(tmp_path)
    loaded, more = lc.load(tmp_path), IMAGES.flip(0).repeat(2, 1, 1, 1)[:7]
    with torch.no_grad():
        torch.testing.assert_close(loaded(more), model(more), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def collapsed() -> tuple[nn.Module, lc.CollapseResult]:
    """A small ResNet with a dead branch, whose constants meet a border, and what it collapses to."""
    torch.manual_seed(0)
    model = awake(models.build("resnet18", in_channels=3, image_size=16, width=4))
    model.get_submodule("layer1.1.conv1").weight.data.zero_()
    model.get_submodule("layer2.1.conv1").weight.data.zero_()
    return model, lc.collapse(model, IMAGES, None, cost="macs")


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")


class Bordered(nn.Module):
    """The first convolution of its block is dead: the second one leaves constants that differ at the border."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.head = nn.Linear(4, 2)
        self.block[0].weight.data.zero_()
        self.block[0].bias.data.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(x + self.block(x)).mean((2, 3)))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, needs_compiler])])
def test_torch_compile(backend: str) -> None:
    torch.manual_seed(0)
    model = Bordered()
    result = lc.collapse(model, IMAGES, None)
    assert any(isinstance(module, ConstantMap) for module in result.model.modules())
    compiled = torch.compile(result.model, backend=backend, fullgraph=True)
    # With gradients: the compiled forward and backward pass, against the eager ones.
    outputs, gradients = [], []
    for module in (result.model, compiled):
        result.model.zero_grad()
        outputs.append(module(IMAGES))
        outputs[-1].square().sum().backward()
        gradients.append([p.grad.clone() for p in result.model.parameters()])
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs[1], model(IMAGES), atol=1e-5, rtol=1e-5)
    for eager, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, eager, atol=1e-4, rtol=1e-3)


def test_one_step_of_sgd_changes_every_parameter_and_the_batch_stays_dynamic(
    collapsed: tuple[nn.Module, lc.CollapseResult],
) -> None:
    model = copy.deepcopy(collapsed[1].model)
    assert any(isinstance(module, ConstantMap) for module in model.modules())
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    F.cross_entropy(model(IMAGES), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    assert [name for name, value in model.named_parameters() if torch.equal(value, before[name])] == []
    exported = torch.export.export(model.eval(), (IMAGES,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    more = IMAGES.repeat(2, 1, 1, 1)[:7]
    torch.testing.assert_close(exported.module()(more), model(more))
    assert not torch.equal(model(more), collapsed[1].model(more))


def test_the_mlp_of_a_transformer_becomes_one_linear_layer() -> None:
    """8 d² weights become d²: every neuron of the rectifier between them is always on or always off.

    The layer norm before them bounds what they read, whatever the input: that is proven.
    """
    d = 8
    torch.manual_seed(0)
    model = Tokens().eval()
    first = model.blocks[1].mlp.fc1
    first.bias.data.copy_(torch.where(torch.arange(4 * d) % 2 == 0, 20.0, -20.0))
    with lc.EntropyProbe(model) as probe, torch.no_grad():
        model(IMAGES)
    result = lc.collapse(model, IMAGES, probe.report(), data=[IMAGES])
    assert [(s.name, s.status, s.guarantee) for s in result.sites if s.status == "collapsed"] == [
        ("blocks.1.mlp.act", "collapsed", "exact")
    ]
    # Weights 2 · d · 4d and biases 4d + d become d · d and d; the layer scale, and maybe the norm's, move into them.
    layers = [module for name, module in result.model.named_modules() if name.startswith("blocks.1.")]
    (layer,) = [module for module in layers if isinstance(module, nn.Linear)]
    assert (layer.weight.numel(), layer.bias.numel()) == (d * d, d)
    assert result.before.parameters - result.after.parameters >= (8 * d * d + 5 * d) - (d * d + d)
    assert result.before.depth - result.after.depth == 1
    assert result.same_predictions == len(IMAGES)


def test_names_are_those_of_the_model(collapsed: tuple[nn.Module, lc.CollapseResult]) -> None:
    """A second call is `relu_2`, a branch that became a constant `conv2_shift`, what it adds at a border `_border`."""
    model, result = collapsed
    known = dict(model.named_modules())
    new = {name for name, module in result.model.named_modules() if not list(module.children())} - set(known)
    assert new, "the second calls of the rectifiers have names of their own"
    for name in new:
        stem = re.sub(r"(_border|_shift|_[2-9])+$", "", name)
        assert stem in known, f"{name} names nothing in the model"


class Constant(nn.Module):
    """A branch that pruning left nothing of but constants, without a border: the sum is a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(x + self.branch(x)).mean((2, 3)))


def test_a_shift_has_the_name_of_the_branch_that_it_was() -> None:
    model = Constant()
    model.branch[0].weight.data.zero_()
    names = dict(lc.collapse(model, IMAGES, None).model.named_children())
    names |= dict(names.pop("branch").named_children())
    assert set(names) == {"stem", "relu", "2_shift", "relu_2", "head"}


class KeepsRows(nn.Module):
    """Pools each row of a map to one value, by a module or a function; `None` keeps the number of rows."""

    def __init__(self, pool: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.pool, self.head = nn.Conv2d(3, 4, 3), pool, nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(torch.relu(self.pool(self.conv(x))))


@pytest.mark.parametrize(
    "pool",
    [
        nn.AdaptiveAvgPool2d((None, 1)),
        lambda x: F.adaptive_avg_pool2d(x, output_size=(1, None)),
        lambda x: F.adaptive_avg_pool2d(x, (None, None)),
    ],
)
def test_a_pooling_that_keeps_a_size_keeps_that_of_every_image(
    pool: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    model = KeepsRows(pool).eval()
    lc.collapse(model, torch.randn(2, 3, 8, 8)).save(tmp_path)
    exported = torch.export.load(tmp_path / "model.pt2").module()
    for size in ((8, 8), (9, 11), (12, 7)):
        x = torch.randn(3, 3, *size)
        for other in (lc.load(tmp_path), exported):
            torch.testing.assert_close(other(x), model(x), rtol=1e-5, atol=1e-5)


class Rows(nn.Module):
    """Only the data say how many rows the layers behind a mask get."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.a(x)
        rows = rows[rows[:, 0] > 0]
        return self.c(torch.relu(self.b(rows)) + rows)


class Columns(Rows):
    """The same of a dimension in the middle, which views and pooling then see."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = self.a(x)[:, (x[0, :, 0] > 0).nonzero()[:, 0]].transpose(1, 2)
        return self.c(torch.relu(self.b(kept.transpose(1, 2))).mean(1))


@pytest.mark.parametrize(("kind", "size"), [(Rows, (16, 4)), (Columns, (2, 12, 4))])
def test_a_size_that_the_data_decide_breaks_nothing(kind: type[nn.Module], size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x = kind().double().eval(), torch.randn(size).double()
    nn.init.zeros_(model.b.weight)
    result = lc.collapse(model, x, None, cost="macs")
    assert result.collapsed
    assert result.after.depth < result.before.depth
    for other in (x, torch.randn(size).double(), torch.randn(size).double()):
        torch.testing.assert_close(result.model(other), model(other), atol=1e-10, rtol=1e-10)


def test_a_model_that_is_random_is_told_so() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.RReLU())
    model.forward = lambda x: x + torch.rand_like(x)  # type: ignore[method-assign]
    with pytest.raises(lc.LayerCollapseError, match="expected the same outputs for the same inputs, got a difference"):
        lc.collapse(model, torch.zeros(2, 4), None, cost="macs")


class Writes(nn.Module):
    """Writes into a part of a tensor, of a complex one too."""

    def __init__(self, complex_: bool) -> None:
        super().__init__()
        self.a, self.b, self.complex = nn.Linear(6, 6), nn.Linear(6, 6), complex_

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b(torch.relu(self.a(x)))
        if self.complex:
            spectrum = torch.fft.rfft(y)
            kept = torch.zeros_like(spectrum)
            kept[:, :2] = spectrum[:, :2]
            return torch.fft.irfft(kept, n=6)
        y[:, :2] = y[:, :2] + x[:, :2]
        return y


@pytest.mark.parametrize("complex_", [False, True])
def test_writes_into_a_part_of_a_tensor(complex_: bool) -> None:
    torch.manual_seed(0)
    model, x = Writes(complex_).double().eval(), torch.randn(5, 6).double()
    result = lc.collapse(model, x, None, cost="macs")
    torch.testing.assert_close(result.model(2 * x), model(2 * x), atol=1e-10, rtol=1e-10)
    result.model(x).square().sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in result.model.parameters())
