"""Triton or CUDA: whichever was faster on this device, measured once per process and kind of call.

The order of registration is what holds until then, for calls too small to matter, and while a CUDA graph is captured.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from layercollapse.kernels.launch import capturing

if TYPE_CHECKING:
    from layercollapse.ops.registry import Backend

SMALL = 8 << 20  # bytes below which the launches, not the loops, take the time
WEIGHTS = 8 << 20  # entries of the weight that masked_topk_ is timed on
ROUNDS = 5

_winners: dict[Hashable, Backend] = {}


def faster(runners: Sequence[Backend], op: str, tensors: Sequence[Tensor], channel_dim: int = 1) -> Backend:
    """Return the fastest of several backends that can run a call; the first is the default.

    Args:
        runners: at least one.
        op: ``"sign_histogram_"``, ``"sign_histograms_"`` or ``"sign_hashes_"``, timed on the first tensor itself, or
            ``"masked_topk_"`` or ``"apply_mask_"``, timed on a weight of its own.
        tensors: what the op reads.
        channel_dim: of an activation.
    """
    first, op = tensors[0], op.replace("histograms", "histogram")
    if len(runners) == 1 or sum(tensor.nbytes for tensor in tensors) < SMALL or capturing(first):
        return runners[0]
    layout = (first.is_contiguous(), channel_dim % first.dim() == 1) if op.startswith("sign_") else None
    key = (op, first.device, first.dtype, layout, *(runner.name for runner in runners))
    if key not in _winners:
        with torch.cuda.device(first.device):
            _winners[key] = min(runners, key=lambda runner: _milliseconds(_call(runner, op, first, channel_dim)))
    return _winners[key]


def _call(runner: Backend, op: str, first: Tensor, channel_dim: int) -> Callable[[], object]:
    if op == "sign_histogram_":
        counts = torch.zeros(first.shape[channel_dim], 4, dtype=torch.int64, device=first.device)
        return lambda: runner.sign_histogram_(first, channel_dim, None, counts)
    if op == "sign_hashes_":
        rows = first.numel() // first.shape[channel_dim]
        return lambda: runner.sign_hashes_(first, channel_dim, first.new_zeros(rows, dtype=torch.int64))  # type: ignore[misc]
    generator = torch.Generator(first.device).manual_seed(0)  # the user's own random numbers stay as they are
    source = torch.randn(WEIGHTS, dtype=first.dtype, device=first.device, generator=generator)
    mask = torch.full((WEIGHTS // 8,), 0x55, dtype=torch.uint8, device=first.device)
    if op == "apply_mask_":  # after the first call, nothing changes
        return lambda: runner.apply_mask_([source], [mask])  # type: ignore[misc]
    weight = torch.empty_like(source)

    def run() -> None:
        weight.copy_(source)
        mask.fill_(0xFF)
        runner.masked_topk_([weight], [mask], [WEIGHTS // 2], "layer")

    return run


def _milliseconds(call: Callable[[], object]) -> float:
    """Median time on the device after two calls that compile and load; infinite for a backend that fails."""
    try:
        call()
        call()
    except Exception:  # the choice falls back; forced by use_backend, the backend shows its error
        return float("inf")
    times = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[ROUNDS // 2]
