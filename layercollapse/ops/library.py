"""The ops as torch knows them, under ``torch.ops.layercollapse``: what they take and mutate, and what they do on fakes.

Arguments are checked here, so that a direct call is as safe as one of `layercollapse.ops`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layercollapse.errors import LayerCollapseError
from layercollapse.ops import checks, reference
from layercollapse.ops.registry import ran, run
from layercollapse.ops.topk_stages import TOPK_COUNTS, check_range

# torch.library.Library directly: torch.library.custom_op adds 25 us to a call.
_library = torch.library.Library("layercollapse", "DEF")
_library.define("sign_histogram_(Tensor x, int channel_dim, float? upper, Tensor(a!) out) -> ()")
# upper: 0 for none, because a schema has no lists of optional numbers.
_library.define("sign_histograms_(Tensor[] x, int[] channel_dim, float[] upper, Tensor(a!)[] out) -> ()")
_library.define("masked_topk_(Tensor(a!)[] weights, Tensor(b!)[] masks, SymInt[] k, str scope) -> Tensor")
_library.define("sign_hashes(Tensor x, int channel_dim) -> Tensor")
_library.define("topk_count(Tensor[] weights, Tensor[] masks, int lo, int hi, bool double=False) -> Tensor")
_library.define("apply_mask_(Tensor(a!)[] weights, Tensor[] masks) -> ()")


def _run_sign_histogram(x: Tensor, channel_dim: int, upper: float | None, out: Tensor) -> None:
    checks.check_sign_histogram(x, channel_dim, upper, out)
    if x.numel():
        run("sign_histogram_", [x], x, channel_dim, upper, out, channel_dim=channel_dim)
        torch.autograd.graph.increment_version(out)


def sign_histogram_(x: Tensor, channel_dim: int, upper: float | None, out: Tensor) -> None:
    """Do as ``torch.ops.layercollapse.sign_histogram_``, without torch's dispatcher where nothing needs it.

    It is up to half of the host's time for a call between a model's layers, 30 us of 70.
    """
    if _is_plain(x) and type(out) is Tensor and not torch.autograd._profiler_enabled():
        _run_sign_histogram(x, channel_dim, upper, out)
    else:
        torch.ops.layercollapse.sign_histogram_(x, channel_dim, upper, out)


def _is_plain(x: Tensor) -> bool:
    """Whether x is a tensor in memory that nothing traces, batches, fakes or negates."""
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and (x.is_cpu or x.is_cuda)
        and not x.is_neg()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def _run_sign_histograms(xs: list[Tensor], channel_dims: list[int], upper: list[float], outs: list[Tensor]) -> None:
    uppers = [bound or None for bound in upper]
    checks.check_sign_histograms(xs, channel_dims, uppers, outs)
    calls = [call for call in zip(xs, channel_dims, uppers, outs, strict=True) if call[0].numel()]
    if calls:
        calls.sort(key=lambda call: -call[0].nbytes)  # the largest is the one that backends are timed on
        tensors, dims, bounds, counts = map(list, zip(*calls, strict=True))
        run("sign_histograms_", tensors, tensors, dims, bounds, counts, channel_dim=dims[0])
        torch.autograd.graph.increment_version(counts)


def _run_masked_topk(weights: list[Tensor], masks: list[Tensor], k: list[int], scope: str) -> Tensor:
    checks.check_masked_topk(weights, masks, k, scope)
    thresholds: Tensor = run("masked_topk_", weights, weights, masks, k, scope)
    # So that autograd notices if a backward pass still needs the old values.
    torch.autograd.graph.increment_version((*weights, *masks))
    return thresholds


def _run_apply_mask(weights: list[Tensor], masks: list[Tensor]) -> None:
    checks.check_masked(weights, masks)
    run("apply_mask_", weights, weights, masks)
    torch.autograd.graph.increment_version(weights)


def _run_topk_count(weights: list[Tensor], masks: list[Tensor], lo: int, hi: int, double: bool = False) -> Tensor:
    checks.check_masked(weights, masks)
    check_range(lo, hi, double)
    counts = _fake_topk_count(weights, masks, lo, hi).zero_()
    if double:
        reference.topk_count_(weights, masks, lo, hi, counts, double=True)
        ran("reference")
        counts[0].clamp_(max=1)
        return counts
    for index, weight in enumerate(weights):
        if weight.dtype == torch.float64:
            raise LayerCollapseError(
                f"weights[{index}]: expected float32, bfloat16 or float16, got float64; such keys are double=True"
            )
    run("topk_count_", weights, weights, masks, lo, hi, counts)
    counts[0].clamp_(max=1)  # a backend may count a weight for each of its parts
    return counts


def _run_sign_hashes(x: Tensor, channel_dim: int) -> Tensor:
    checks.check_activation(x, channel_dim, None)
    hashes = _fake_sign_hashes(x, channel_dim).zero_()
    if x.numel():
        run("sign_hashes_", [x], x, channel_dim, hashes.view(-1), channel_dim=channel_dim)
    return hashes


def _fake_sign_hashes(x: Tensor, channel_dim: int) -> Tensor:
    shape = [size for dim, size in enumerate(x.shape) if dim != channel_dim % x.dim()]
    return x.new_empty(shape, dtype=torch.int64)


def _fake_sign_histogram(x: Tensor, channel_dim: int, upper: float | None, out: Tensor) -> None:
    checks.check_out_device(x, out)


def _fake_sign_histograms(xs: list[Tensor], channel_dims: list[int], upper: list[float], outs: list[Tensor]) -> None:
    checks.check_one_device(x=xs, out=outs)


def _fake_masked_topk(weights: list[Tensor], masks: list[Tensor], k: list[int], scope: str) -> Tensor:
    checks.check_one_device(weights=weights, masks=masks)
    double = any(weight.dtype == torch.float64 for weight in weights)
    size = len(weights) if scope == "layer" else 1
    return weights[0].new_empty(size, dtype=torch.float64 if double else torch.float32)


def _fake_topk_count(weights: list[Tensor], masks: list[Tensor], lo: int, hi: int, double: bool = False) -> Tensor:
    checks.check_one_device(weights=weights, masks=masks)
    return weights[0].new_empty(TOPK_COUNTS, dtype=torch.int64)


def _fake_apply_mask(weights: list[Tensor], masks: list[Tensor]) -> None:
    checks.check_one_device(weights=weights, masks=masks)


# One implementation for every device: it chooses the backend, and the reference runs on any. The fakes also run on meta
# tensors, and where some are and some are not: then nothing else would look at the devices.
for _name, _run, _fake in (
    ("sign_histogram_", _run_sign_histogram, _fake_sign_histogram),
    ("sign_histograms_", _run_sign_histograms, _fake_sign_histograms),
    ("sign_hashes", _run_sign_hashes, _fake_sign_hashes),
    ("masked_topk_", _run_masked_topk, _fake_masked_topk),
    ("topk_count", _run_topk_count, _fake_topk_count),
    ("apply_mask_", _run_apply_mask, _fake_apply_mask),
):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"layercollapse::{_name}", _fake, lib=_library)
