"""What a collapse itself costs: seconds and peak memory, on networks of transformers with random weights.

    python benchmarks/collapse.py                     # ResNet-50 and Swin-T, each in a process of its own

Every second first layer of a block, or of an MLP, is cleared, so that its site collapses. The memory is the peak of
the resident set during the collapse, above what it was before, once a tiny network has been collapsed (which imports
what torch.export needs, about 150 MiB); Linux only.
"""

from __future__ import annotations

import argparse
import gc
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import layercollapse as lc

MIB = 1024**2


def resnet50() -> tuple[nn.Module, list[str]]:
    from transformers import ResNetConfig, ResNetForImageClassification

    model = ResNetForImageClassification(ResNetConfig(num_labels=1000))
    return model, [name for name, _ in model.named_modules() if name.endswith(".layer.0.convolution")]


def swin_t() -> tuple[nn.Module, list[str]]:
    from transformers import SwinConfig, SwinForImageClassification

    model = SwinForImageClassification(SwinConfig(num_labels=1000))
    return model, [name for name, _ in model.named_modules() if name.endswith((".fc1", ".intermediate.dense"))]


NETWORKS: dict[str, Callable[[], tuple[nn.Module, list[str]]]] = {"resnet50": resnet50, "swin_t": swin_t}


def measure(name: str) -> None:
    torch.manual_seed(0)
    model, first_layers = NETWORKS[name]()
    model.eval()
    for layer in first_layers[::2]:
        model.get_submodule(layer).weight.data.zero_()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))  # transformers starts all biases at zero
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        model(x)
    tiny = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    lc.collapse(tiny, torch.randn(1, 3, 8, 8), None)
    gc.collect()
    size = sum(p.numel() * p.element_size() for p in model.parameters()) / MIB
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present
    before, started = resident("VmRSS"), time.perf_counter()
    result = lc.collapse(model, x, None, tolerance=1e-3)
    seconds, extra = time.perf_counter() - started, resident("VmHWM") - before
    print(
        f"{name}: {len(result.collapsed)} of {len(result.sites)} sites, depth {result.before.depth} -> "
        f"{result.after.depth}, {seconds:.1f} s on {torch.get_num_threads()} threads, "
        f"peak memory {extra:.0f} MiB = {extra / size:.2f} times the model's {size:.0f} MiB"
    )
    print("  " + "\n  ".join(line for line in result.explain().splitlines() if " ms" in line))


def resident(field: str) -> float:
    """A line of /proc/self/status, in MiB."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("network", nargs="?", choices=NETWORKS, help="measure this one here; default: all, in children")
    chosen = parser.parse_args().network
    if chosen:
        measure(chosen)
    else:
        for name in NETWORKS:
            subprocess.run([sys.executable, __file__, name], check=True)


if __name__ == "__main__":
    main()
