"""What every launch needs: the device of the tensors, how many programs fill it, and whether a graph is captured."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

WAVES = 8  # programs per multiprocessor: of 128 threads with 64 to 128 bytes in flight each, 64 to 128 KiB
CPU_PROGRAMS = 4  # in Triton's interpreter, where a program costs a hundred times what its data does


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's device the current one, whose current stream the launches go to."""
    return on_device(tensor.device)


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a device the current one; see `on_device_of`."""
    return torch.cuda.device(device.index) if device.type == "cuda" else nullcontext()


def program_count(tensor: Tensor, each: int = WAVES) -> int:
    """Number of programs that keep the tensor's device busy, with so many on each multiprocessor."""
    return each * _multiprocessors(tensor.device.index) if tensor.is_cuda else CPU_PROGRAMS


@cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def capturing(tensor: Tensor) -> bool:
    """Whether launches on the tensor's device are being recorded into a CUDA graph, so that nothing may be read."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
