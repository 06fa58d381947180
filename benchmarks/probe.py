"""What an EntropyProbe adds to a forward pass: python benchmarks/probe.py [--threads N] [--rounds N]

Small images on few channels, where nearly all is the host's time: microseconds for a site (its op included) and for
any other operation, in the first pass of a `with`, which is watched call by call, and in later ones. Then a ResNet-18
on Fashion-MNIST's sizes, batch 64, as a share of the pass: there counting itself takes part of the time. Plain, first
and later passes (the fifth) take turns; medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from gpu_models import ViT, resnet50
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from layercollapse import EntropyProbe
from layercollapse._util.timing import processor
from layercollapse.zoo.models.resnet import ResNet18


class Functional(nn.Module):
    """Calls a rectifier as a function: every pass is watched."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 16) for _ in range(32)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = nn.functional.relu(layer(x))
        return x


class Operations(TorchFunctionMode):
    """Counts the calls that a probe's mode would see."""

    calls = 0

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def medians(model: nn.Module, x: Tensor, rounds: int) -> tuple[float, float, float]:
    """Microseconds of a plain pass, of the first under a probe, and of a later one."""

    def timed() -> float:
        start = time.perf_counter()
        model(x)
        return 1e6 * (time.perf_counter() - start)

    times = []
    probe = EntropyProbe(model)
    for _ in range(3 + rounds):
        plain = timed()
        with probe:
            times.append((plain, timed(), [timed() for _ in range(5)][-1]))
    plain, first, later = (statistics.median(column) for column in zip(*times[3:], strict=True))
    return plain, first, later


def without(model: nn.Module) -> nn.Module:
    """The model with nothing in the place of its rectifiers."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU | nn.GELU):
                setattr(module, name, nn.Identity())
    return model


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"{processor()}, {options.threads} thread(s), torch {torch.__version__}")
    print(f"{'':24}{'plain us':>10}{'first us':>10}{'later us':>10}{'sites':>7}{'us a site: first':>18}{'later':>7}")
    for name, make, x in (
        ("ResNet-50, 1/8 wide", lambda: resnet50(8), torch.randn(1, 3, 8, 8)),
        ("ViT, 64 wide", lambda: ViT(64), torch.randn(1, 3, 32, 32)),
        ("MLP, functional.relu", Functional, torch.randn(1, 16)),
    ):
        model = make().eval()
        plain, first, later = medians(model, x, options.rounds)
        with EntropyProbe(model) as probe:
            model(x)
        sites = len(probe.calls())
        each = f"{(first - plain) / sites:18.0f}{(later - plain) / sites:7.0f}"
        print(f"{name:24}{plain:10.0f}{first:10.0f}{later:10.0f}{sites:7}{each}")
        if name.startswith("MLP"):
            continue
        bare = without(model)
        with Operations() as operations:
            bare(x)
        plain, first, later = medians(bare, x, options.rounds)
        each = f"{(first - plain) / operations.calls:18.1f}{(later - plain) / operations.calls:7.1f}"
        print(f"  its {operations.calls} other calls{'':4}{plain:10.0f}{first:10.0f}{later:10.0f}{'':7}{each}")
    model = ResNet18(num_classes=10, in_channels=1, image_size=28, width=16).eval()
    plain, first, later = medians(model, torch.randn(64, 1, 28, 28), max(5, options.rounds // 3))
    share = f"first +{100 * (first / plain - 1):.1f} %, later +{100 * (later / plain - 1):.1f} %"
    print(f"ResNet-18, 16 wide, 64 images of 28x28: plain {plain / 1e3:.2f} ms, {share}")


if __name__ == "__main__":
    main()
