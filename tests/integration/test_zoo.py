"""Architectures as people write them, small and pruned: collapsed by algebra alone, and with counts; saved; trained.

Every network goes through the same checks. Two run each time, others in make test-long, those of transformers nightly.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import layercollapse as lc
from layercollapse.graph.agreement import tensors_of

Inputs = tuple[Tensor, ...] | dict[str, Tensor]


def noise(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class DenseNet(nn.Module):
    """Every layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = block(3, 8), nn.BatchNorm2d(20), nn.Linear(20, 5)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8 + 4 * i) for i in range(3)])
        self.layers = nn.ModuleList([nn.Conv2d(8 + 4 * i, 4, 3, padding=1) for i in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        found = [self.stem(x)]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            found.append(layer(F.relu(norm(torch.cat(found, 1)), inplace=True)))
        return self.head(F.adaptive_avg_pool2d(F.relu(self.norm(torch.cat(found, 1))), 1).flatten(1))


class ShuffleNet(nn.Module):
    """Channels are split, joined and shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = block(3, 8, stride=2), nn.Linear(8, 5)
        self.branches = nn.ModuleList([nn.Sequential(block(4, 4, 1), block(4, 4, groups=4)) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            a, b = x.chunk(2, dim=1)
            x = torch.cat((a, branch(b)), 1)
            n, c, h, w = x.size()
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return self.head(x.mean([2, 3]))


class MobileNetV3(nn.Module):
    """An inverted residual with a squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Hardswish(inplace=True))
        self.expand, self.depthwise = block(8, 16, 1), block(16, 16, 5, groups=16)
        self.reduce, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Sequential(nn.Linear(8, 16), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        y = y * F.hardsigmoid(self.excite(F.relu(self.reduce(F.adaptive_avg_pool2d(y, 1)))))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(self.project(y) + x, 1), 1))


class UNet(nn.Module):
    """Down, up with a transposed convolution or an interpolation, and across."""

    def __init__(self, transposed: bool = True) -> None:
        super().__init__()
        self.down, self.middle, self.across = block(3, 4), block(4, 8), block(8, 4)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2) if transposed else nn.Conv2d(8, 4, 1)
        self.head, self.transposed = nn.Conv2d(4, 2, 1), transposed

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.down(x)
        y = self.up(self.middle(F.max_pool2d(x, 2)))
        if not self.transposed:
            y = F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)
        return {"out": self.head(self.across(torch.cat([x, y], 1)))}


class TemporalNet(nn.Module):
    """Dilated causal convolutions with weight norm."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.layers = nn.ModuleList([norm(nn.Conv1d(2 if d == 1 else 6, 6, 3, dilation=d)) for d in (1, 2)])
        self.side, self.head = nn.Conv1d(2, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers:
            y = F.relu(layer(F.pad(y, (2 * layer.dilation[0], 0))))
        return self.head(F.relu(y + self.side(x))[:, :, -1])


class Recurrent(nn.Module):
    """Two directions over tokens, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 6)
        self.cells = nn.GRU(6, 5, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 8), nn.PReLU(8), nn.Linear(8, 3))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.cells(self.table(ids))[0][:, -1])


class Diffusion(nn.Module):
    """Group norms, a time embedding, and attention over the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 8))
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.qkv, self.last = nn.GroupNorm(4, 8), nn.Conv2d(8, 24, 1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * torch.exp(-torch.arange(2, dtype=x.dtype, device=x.device))
        h = self.first(x) + self.time(torch.cat([angles.sin(), angles.cos()], -1))[:, :, None, None]
        h = h + self.second(F.silu(self.norm(h)))
        n, c, height, width = h.shape
        q, k, v = self.qkv(self.norm(h)).reshape(n, 3, c, height * width).unbind(1)
        weights = torch.softmax(torch.einsum("nci,ncj->nij", q, k) / math.sqrt(c), -1)
        return self.last(F.silu(h + torch.einsum("nij,ncj->nci", weights, v).reshape(n, c, height, width)))


class Siamese(nn.Module):
    """One trunk over two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(block(1, 4), nn.MaxPool2d(2), block(4, 4), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(16, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.abs(self.trunk(a) - self.trunk(b)))


class Recommender(nn.Module):
    """Embedding bags, and products between features."""

    def __init__(self) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
        self.bag, self.table = nn.EmbeddingBag(20, 8, mode="sum"), nn.Embedding(10, 8)
        self.top = nn.Sequential(nn.Linear(11, 16), nn.ReLU(), nn.Linear(16, 1), nn.Sigmoid())

    def forward(self, dense: Tensor, several: Tensor, one: Tensor) -> Tensor:
        x = self.bottom(dense)
        all_ = torch.stack([x, self.bag(several), self.table(one)], 1)
        rows, columns = torch.tril_indices(3, 3, -1)
        return self.top(torch.cat([x, torch.bmm(all_, all_.transpose(1, 2))[:, rows, columns]], 1))


class Graphs(nn.Module):
    """Convolutions over a dense adjacency."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.weight = nn.Linear(5, 8), nn.Linear(8, 8), nn.Parameter(noise(8, 4))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        adjacency = adjacency + torch.eye(adjacency.shape[-1], dtype=x.dtype, device=x.device)
        scale = adjacency.sum(-1).clamp(min=1e-6).pow(-0.5)
        adjacency = scale[:, :, None] * adjacency * scale[:, None, :]
        x = F.relu(torch.matmul(adjacency, self.second(F.relu(adjacency @ self.first(x)))))
        return (adjacency @ (x @ self.weight)).mean(1)


class Encoder(nn.Module):
    """torch's own transformer, with a mask of the padding."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.table, self.layers = nn.Embedding(30, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layers(self.table(ids), src_key_padding_mask=ids == 0).mean(1))


class Operator(nn.Module):
    """A Fourier neural operator: a part of a complex tensor is written."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.side, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)
        self.weight = nn.Parameter(torch.complex(noise(6, 6, 3, 3), noise(6, 6, 3, 3)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        spectrum = torch.fft.rfft2(x)
        out = torch.zeros_like(spectrum)
        out[:, :, :3, :3] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, :3, :3], self.weight)
        return self.head(F.relu(torch.fft.irfft2(out, s=x.shape[-2:]) + self.side(x)))


IMAGES, IDS = noise(3, 3, 16, 16), torch.arange(3 * 7).reshape(3, 7) % 30
OTHER = ((noise(2, 3, 24, 20),),)
TOKENS = {"input_ids": IDS + 5, "attention_mask": torch.ones_like(IDS)}
FEWER = ({name: value[:2, :5] for name, value in TOKENS.items()},)


def transformer(name: str, kind: str, **config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        return getattr(transformers, kind)(getattr(transformers, f"{name}Config")(**config))

    return build


TEXT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 60}
STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4}
# name -> what builds it, its inputs, inputs of other sizes
QUICK: dict[str, tuple[Callable[[], nn.Module], Inputs, tuple[Inputs, ...]]] = {
    "densenet": (DenseNet, (IMAGES,), OTHER),
    "shufflenet": (ShuffleNet, (IMAGES,), OTHER),
    "mobilenet_v3": (MobileNetV3, (IMAGES,), OTHER),
    "unet": (UNet, (IMAGES,), OTHER),
    "temporal": (TemporalNet, (noise(3, 2, 12),), ((noise(2, 2, 20),),)),
    "diffusion": (Diffusion, (IMAGES, noise(3)), ((noise(2, 3, 12, 16), noise(2)),)),
    "operator": (Operator, (IMAGES,), OTHER),
    "graphs": (Graphs, (noise(3, 6, 5), (noise(3, 6, 6) > 0).double()), ()),
}
NIGHTLY: dict[str, tuple[Callable[[], nn.Module], Inputs, tuple[Inputs, ...]]] = {
    "unet_interpolated": (lambda: UNet(False), (IMAGES,), OTHER),
    "recurrent": (Recurrent, (IDS,), ((IDS[:2, :4],),)),
    "siamese": (Siamese, (IMAGES[:, :1], IMAGES[:, 1:2]), ()),
    "recommender": (Recommender, (noise(3, 5), IDS[:, :6] % 20, torch.arange(3)), ()),
    "encoder": (Encoder, (IDS,), ((IDS[:2, :4],),)),
    "convnext": (
        transformer("ConvNext", "ConvNextForImageClassification", hidden_sizes=[8, 16], depths=[1, 2], num_stages=2),
        (noise(3, 3, 32, 32),),
        ((noise(2, 3, 48, 48),),),
    ),
    "regnet": (
        transformer(
            "RegNet",
            "RegNetForImageClassification",
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 2],
            groups_width=4,
        ),
        (noise(3, 3, 32, 32),),
        ((noise(2, 3, 48, 48),),),
    ),
    "mobilenet_v2_segmentation": (
        transformer(
            "MobileNetV2",
            "MobileNetV2ForSemanticSegmentation",
            image_size=32,
            depth_multiplier=0.25,
            min_depth=4,
        ),
        (noise(2, 3, 64, 64),),
        (),
    ),
    "poolformer": (transformer("PoolFormer", "PoolFormerForImageClassification", **STAGES), (noise(3, 3, 32, 32),), ()),
    "segformer": (
        transformer(
            "Segformer",
            "SegformerForSemanticSegmentation",
            **STAGES,
            num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=16,
        ),
        (noise(2, 3, 64, 64),),
        ((noise(2, 3, 96, 64),),),
    ),
    "llama": (
        transformer(
            "Llama",
            "LlamaForCausalLM",
            **TEXT,
            use_cache=False,
            num_key_value_heads=1,
            bos_token_id=0,
            eos_token_id=1,
        ),
        TOKENS,
        FEWER,
    ),
    "cohere": (
        transformer("Cohere", "CohereForCausalLM", **TEXT, use_cache=False, bos_token_id=0, eos_token_id=1),
        TOKENS,
        FEWER,
    ),
    "albert": (
        transformer("Albert", "AlbertForSequenceClassification", **TEXT, embedding_size=8, hidden_act="relu"),
        TOKENS,
        FEWER,
    ),
    "t5": (
        transformer(
            "T5",
            "T5ForConditionalGeneration",
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            vocab_size=60,
            use_cache=False,
        ),
        {**TOKENS, "decoder_input_ids": TOKENS["input_ids"][:, :4]},
        (),
    ),
    "wav2vec2": (
        transformer(
            "Wav2Vec2",
            "Wav2Vec2ForCTC",
            **{**TEXT, "vocab_size": 32},
            hidden_act="relu",
            conv_dim=[8, 8],
            conv_stride=[5, 2],
            conv_kernel=[10, 3],
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
        ),
        (noise(2, 200),),
        ((noise(2, 300),),),
    ),
}


def prune(model: nn.Module) -> None:
    """Clear the weights of a layer or two, rows of others, and move some biases far up or down."""
    generator = torch.Generator().manual_seed(0)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    layers = [m for m in layers if isinstance(m._parameters.get("weight"), nn.Parameter)]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        for index, layer in enumerate(layers):
            if index in (1, len(layers) - 2) and len(layers) > 4:
                layer.weight.zero_()
            elif index % 3 == 0:
                layer.weight[torch.rand(len(layer.weight), generator=generator) < 0.4] = 0
            elif index % 3 == 1 and layer.bias is not None:
                layer.bias += 4 if index % 2 else -4


def other_values(inputs: Inputs, batch: int) -> Inputs:
    """Other samples, and as many as asked."""

    def changed(value: Tensor) -> Tensor:
        value = torch.cat([value, value])[torch.arange(batch)].flip(0)
        binary = bool(((value == 0) | (value == 1)).all())
        return value if binary or not value.is_floating_point() else 0.9 * value + 0.1

    return pytree.tree_map(changed, inputs)


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    inputs = pytree.tree_map(torch.clone, inputs)
    return tensors_of(model(**inputs) if isinstance(inputs, dict) else model(*inputs))


def agree(model: nn.Module, other: nn.Module, inputs: Inputs, tolerance: float) -> None:
    with torch.no_grad():
        expected, got = outputs(model, inputs), outputs(other, inputs)
    assert len(expected) == len(got)
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(b, a, atol=tolerance, rtol=tolerance)


def check_exact(model: nn.Module, inputs: Inputs, others: tuple[Inputs, ...], folder: Path) -> None:
    """Without counts, all that is done is exact: for other samples, another batch, and sizes that are not refused."""
    result = lc.collapse(model, inputs, None, cost="macs")
    tolerance = 1e-6 if any(p.dtype == torch.float32 for p in result.model.parameters()) else 1e-9
    assert result.after.macs <= result.before.macs
    for same in (inputs, other_values(inputs, 1), other_values(inputs, 4)):
        agree(model, result.model, same, tolerance)
    for other in others:
        if result.fixed_sizes:
            with pytest.raises(lc.LayerCollapseError, match="was made for sizes of"):
                outputs(result.model, other)
        else:
            agree(model, result.model, other, tolerance)
    result.save(folder)
    agree(result.model, lc.load(folder), other_values(inputs, 4), 1e-12)


def check_pruner(model: nn.Module, inputs: Inputs) -> None:
    """A step, and what it took away stays away while an optimizer with momentum trains."""
    pruner = lc.Pruner(model, inputs)
    with lc.EntropyProbe(model) as probe, torch.no_grad():
        outputs(model, inputs)
    assert sum(pruner.step(probe.report(), amount=0.2).removed.values()) > 0
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    with pruner.attach(optimizer):
        sum(out.double().square().mean() for out in outputs(model, inputs)).backward()
        optimizer.step()
    masks = pruner.masks()
    assert all(bool(p[~masks[name]].eq(0).all()) for name, p in model.named_parameters() if name in masks)


def check_counted(model: nn.Module, inputs: Inputs) -> None:
    """With counts: within the tolerance on what was counted; what comes of it trains, and every site is told of."""
    data = [inputs, other_values(inputs, 4)]
    with lc.EntropyProbe(model) as probe, torch.no_grad():
        for batch in data:
            outputs(model, batch)
    report = probe.report()
    one = isinstance(inputs, tuple) and len(inputs) == 1
    compared = [batch[0] if one else batch for batch in data] if one or isinstance(inputs, dict) else None
    result = lc.collapse(model, inputs, report, data=compared, cost="macs", partial=True)
    agree(model, result.model, inputs, 1e-3)
    assert result.after.parameters <= result.before.parameters
    assert all(site.name in result.explain() and site.reason for site in result.sites)
    assert all(" ," not in site.reason and "on on" not in site.reason for site in result.sites)
    trained = copy.deepcopy(result.model).train()
    sum(out.double().square().mean() for out in outputs(trained, inputs) if out.requires_grad).backward()
    assert any(bool(p.grad.ne(0).any()) for p in trained.parameters() if p.grad is not None)


def marked(name: str) -> object:
    marks = pytest.mark.nightly if name in NIGHTLY else () if name in ("densenet", "temporal") else pytest.mark.long
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [*map(marked, [*QUICK, *NIGHTLY])])
@pytest.mark.usefixtures("one_thread")
def test_an_architecture(name: str, tmp_path: Path) -> None:
    build, inputs, others = {**QUICK, **NIGHTLY}[name]
    torch.manual_seed(0)
    model = build().double().eval()
    if name not in ("graphs", "temporal"):  # no weight of theirs feeds a rectifier: an adjacency, or a norm, is between
        check_pruner(copy.deepcopy(model), inputs)
    prune(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    check_exact(model, inputs, others, tmp_path)
    check_counted(model, inputs)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
