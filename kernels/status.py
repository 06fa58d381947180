"""Whether Triton can run here, and on what."""

from __future__ import annotations

import os
from functools import cache

import torch


@cache
def triton_status() -> tuple[bool, str]:
    """Whether the Triton kernels can be used, and with what, or why not."""
    try:
        import triton
    except ImportError as error:
        return False, f"Triton is not installed: pip install 'layercollapse[triton]' ({error})"
    if interpreted():
        return True, f"Triton {triton.__version__}, interpreter: for tests"
    if not torch.cuda.is_available():
        return False, "no CUDA device"
    return True, f"Triton {triton.__version__}, {torch.cuda.get_device_name()}"


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python, also on tensors of the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"
