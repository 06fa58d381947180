"""Latency of models in turns, size of a file, and what the timings depend on."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from layercollapse._util.timing import in_turns, processor
from layercollapse.graph.export import call_arguments

MIB = 1024**2
BATCH_SIZES = (1, 64)


@torch.inference_mode()
def latency(
    models: Sequence[nn.Module], example: Any, *, seconds: float = 1.0, warmup: int = 5, minimum: int = 20
) -> list[float]:
    """Median time of a forward pass, in milliseconds, one number per model.

    Args:
        models: in evaluation mode, on the device of `example`.
        example: a tensor (N, ...), a tuple of arguments or a dict of them; N is the batch size measured.
        seconds: stop after this long in all.
        warmup: passes of each that are not counted.
        minimum: passes of each that are counted even if it takes longer.
    """
    args, kwargs = call_arguments(example)
    device = next((x.device for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)), torch.device("cpu"))
    calls = [partial(model, *args, **kwargs) for model in models]
    return in_turns(calls, device, seconds=seconds, warmup=warmup, minimum=minimum)


def repeat_to(example: Any, batch_size: int) -> Any:
    """The samples of every tensor (N, ...) of `example` repeated or cut to (batch_size, ...)."""

    def resized(x: Tensor) -> Tensor:
        return x[torch.arange(batch_size, device=x.device) % len(x)] if x.ndim else x

    return pytree.tree_map_only(Tensor, resized, example)


def file_mib(path: Path) -> float:
    """Size of a file in MiB."""
    return path.stat().st_size / MIB


def environment(device: torch.device) -> dict[str, str]:
    """What the timings depend on: processor or GPU, threads, versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "device": name,
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
