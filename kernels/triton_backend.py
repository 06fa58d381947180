"""The Triton backend as the registry sees it: whether it runs here; Triton itself is imported at the first call."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python, also on tensors of the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@cache
def status() -> tuple[bool, str]:
    """Whether the Triton kernels can be used, and with what, or why not."""
    try:
        import triton
    except ImportError as error:
        return False, f"Triton is not installed: pip install 'layercollapse[triton]' ({error})"
    try:
        import layercollapse_core._core  # noqa: F401 - it plans the launches
    except ImportError as error:
        return False, f"the C++ core is not built: install with GCC or Clang ({error})"
    if interpreted():
        return True, f"Triton {triton.__version__}, interpreter: for tests"
    if not torch.cuda.is_available():
        return False, "no CUDA device"
    return True, f"Triton {triton.__version__}, {torch.cuda.get_device_name()}"


def sign_histogram_(x: Tensor, channel_dim: int, upper: float | None, out: Tensor) -> None:
    """See `kernels.sign_histogram`."""
    from layercollapse.kernels import sign_histogram

    sign_histogram.sign_histogram_(x, channel_dim, upper, out)


def sign_histograms_(
    xs: Sequence[Tensor], channel_dims: Sequence[int], uppers: Sequence[float | None], outs: Sequence[Tensor]
) -> None:
    """See `kernels.sign_histogram`."""
    from layercollapse.kernels import sign_histogram

    sign_histogram.sign_histograms_(xs, channel_dims, uppers, outs)


def sign_histograms_again_(
    xs: Sequence[Tensor], channel_dims: Sequence[int], uppers: Sequence[float | None], outs: Sequence[Tensor]
) -> Callable[[Sequence[Tensor], Sequence[Tensor]], None]:
    """See `kernels.sign_histogram`."""
    from layercollapse.kernels import sign_histogram

    return sign_histogram.sign_histograms_again_(xs, channel_dims, uppers, outs)


def masked_topk_(weights: Sequence[Tensor], masks: Sequence[Tensor], k: Sequence[int], scope: str) -> Tensor:
    """See `kernels.masked_topk`."""
    from layercollapse.kernels import masked_topk

    return masked_topk.masked_topk_(weights, masks, k, scope)


def masked_topk_again_(
    weights: Sequence[Tensor], masks: Sequence[Tensor], scope: str
) -> Callable[[Sequence[int]], Tensor]:
    """See `kernels.masked_topk`."""
    from layercollapse.kernels import masked_topk

    return masked_topk.masked_topk_again_(weights, masks, scope)


def sign_hashes_(x: Tensor, channel_dim: int, out: Tensor) -> None:
    """See `kernels.sign_hashes`."""
    from layercollapse.kernels import sign_hashes

    sign_hashes.sign_hashes_(x, channel_dim, out)


def apply_mask_(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """See `kernels.apply_mask`."""
    from layercollapse.kernels import apply_mask

    apply_mask.apply_mask_(weights, masks)


def apply_mask_again_(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> Callable[[], None]:
    """See `kernels.apply_mask`."""
    from layercollapse.kernels import apply_mask

    return apply_mask.apply_mask_again_(weights, masks)
