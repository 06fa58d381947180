"""The backends that run here, where, and small arguments of the ops."""

import torch

from layercollapse import LayerCollapseError, ops


def device_of(name):
    """Where a backend runs: on tensors of the CPU (also in a simulation) or of a GPU; None if it cannot run."""
    for device in ("cpu", "cuda"):
        try:
            with ops.use_backend(name):
                ops.sign_histogram(torch.ones(1, 1, device=device))
            return device
        except LayerCollapseError:
            continue
    return None


DEVICES = {name: device for name in ops.backends() if (device := device_of(name))}
AVAILABLE = list(DEVICES)


def dense(*shape, dtype=torch.float32, device="cpu"):
    return torch.arange(torch.Size(shape).numel(), dtype=dtype, device=device).reshape(shape) - 3


def full_mask(numel, device="cpu"):
    return ops.pack_mask(torch.ones(numel, dtype=torch.bool, device=device))
