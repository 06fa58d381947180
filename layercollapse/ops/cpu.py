"""The C++ backend: hands addresses of torch tensors to `layercollapse_core`, and torch's number of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from layercollapse.kernels.bits import FLOAT_TYPES
from layercollapse.ops.checks import nan_error, too_many_error

DTYPE_CODES = {dtype: kind.code for dtype, kind in FLOAT_TYPES.items()}


@cache
def status() -> tuple[bool, str]:
    """Whether the core can be used, and with what, or why not."""
    try:
        from layercollapse_core import _core
    except ImportError as error:
        return False, f"the C++ core is not built: install with GCC or Clang ({error})"
    try:
        isa = _core.isa()
    except ValueError as error:
        return False, str(error)
    return True, f"C++, {isa}, {'OpenMP threads of torch' if _core.openmp else 'one thread'}"


def sign_histogram_(x: Tensor, channel_dim: int, upper: float | None, out: Tensor) -> None:
    """See ``reference.sign_histogram_``: one read of x, any strides."""
    sign_histograms_([x], [channel_dim], [upper], [out])


def sign_histograms_(
    xs: Sequence[Tensor], channel_dims: Sequence[int], uppers: Sequence[float | None], outs: Sequence[Tensor]
) -> None:
    """Count many activations, in one loop over the threads; see `sign_histogram_`."""
    sign_histograms_again_(xs, channel_dims, uppers, outs)(xs, outs)


def sign_histograms_again_(
    xs: Sequence[Tensor], channel_dims: Sequence[int], uppers: Sequence[float | None], outs: Sequence[Tensor]
) -> Callable[[Sequence[Tensor], Sequence[Tensor]], None]:
    """See ``Backend``."""
    from layercollapse_core import _core

    layouts = (
        [DTYPE_CODES[x.dtype] for x in xs],
        [x.shape for x in xs],
        [x.stride() for x in xs],
        [channel_dim % x.dim() for x, channel_dim in zip(xs, channel_dims, strict=True)],
        [upper or 0.0 for upper in uppers],
    )

    def call(xs: Sequence[Tensor], outs: Sequence[Tensor]) -> None:
        counts = [out.data_ptr() for out in outs]
        _core.sign_histogram([x.data_ptr() for x in xs], *layouts, counts, torch.get_num_threads())

    return call


def sign_hashes_(x: Tensor, channel_dim: int, out: Tensor) -> None:
    """See ``reference.sign_hashes_``: one read of x, any strides."""
    from layercollapse_core import _core

    _core.sign_hashes(
        x.data_ptr(),
        DTYPE_CODES[x.dtype],
        x.shape,
        x.stride(),
        channel_dim % x.dim(),
        out.data_ptr(),
        torch.get_num_threads(),
    )


def masked_topk_(weights: Sequence[Tensor], masks: Sequence[Tensor], k: Sequence[int], scope: str) -> Tensor:
    """See ``reference.masked_topk_``: two reads of the weights, one write of what changes."""
    return masked_topk_again_(weights, masks, scope)(k)


def masked_topk_again_(
    weights: Sequence[Tensor], masks: Sequence[Tensor], scope: str
) -> Callable[[Sequence[int]], Tensor]:
    """See ``Backend``."""
    from layercollapse_core import _core

    memory = _masked(weights, masks)

    def call(k: Sequence[int]) -> Tensor:
        thresholds = torch.empty(len(k), dtype=torch.float32)
        threads = torch.get_num_threads()
        code, index, kept = _core.masked_topk(*memory, k, scope == "global", thresholds.data_ptr(), threads)
        if code == 1:
            raise nan_error(index)
        if code == 2:
            raise too_many_error(index, scope, k[index], kept)
        return thresholds

    return call


def topk_count_(weights: Sequence[Tensor], masks: Sequence[Tensor], lo: int, hi: int, counts: Tensor) -> None:
    """See ``reference.topk_count_``: one read of weights and masks."""
    from layercollapse_core import _core

    _core.topk_count(*_masked(weights, masks), lo, hi, counts.data_ptr(), torch.get_num_threads())


def apply_mask_(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """See ``reference.apply_mask_``: one read of weights and masks, and a write of what changes."""
    apply_mask_again_(weights, masks)()


def apply_mask_again_(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> Callable[[], None]:
    """See ``Backend``."""
    from layercollapse_core import _core

    memory = _masked(weights, masks)
    return lambda: _core.apply_mask(*memory, torch.get_num_threads())


def _masked(
    weights: Sequence[Tensor], masks: Sequence[Tensor]
) -> tuple[list[int], list[int], list[int], list[int], list[tuple[int, torch.Size, tuple[int, ...]]]]:
    """Return addresses, types and sizes of all, and the layouts of those that are not contiguous."""
    return (
        [weight.data_ptr() for weight in weights],
        [mask.data_ptr() for mask in masks],
        [DTYPE_CODES[weight.dtype] for weight in weights],
        [weight.numel() for weight in weights],
        [(index, weight.shape, weight.stride()) for index, weight in enumerate(weights) if not weight.is_contiguous()],
    )
