"""The backends of this package, in the order of registration: on a CPU the last that can run is taken."""

from __future__ import annotations

from layercollapse.kernels import cuda, triton_backend
from layercollapse.kernels.bits import FLOAT_TYPES
from layercollapse.ops import cpu, reference
from layercollapse.ops.registry import Backend, BackendStatus, register, reserve

register(
    Backend(
        name="reference",
        devices=frozenset(),
        dtypes=frozenset(),
        status=lambda: BackendStatus(True, "plain torch, any device"),
        sign_histogram_=reference.sign_histogram_,
        masked_topk_=reference.masked_topk_,
        apply_mask_=reference.apply_mask_,
        sign_hashes_=reference.sign_hashes_,
        topk_count_=reference.topk_count_,
    )
)
register(
    Backend(
        name="triton",
        devices=frozenset({"cuda", "cpu"} if triton_backend.interpreted() else {"cuda"}),
        dtypes=frozenset(FLOAT_TYPES),
        status=lambda: BackendStatus(*triton_backend.status()),
        sign_histogram_=triton_backend.sign_histogram_,
        sign_histograms_=triton_backend.sign_histograms_,
        masked_topk_=triton_backend.masked_topk_,
        apply_mask_=triton_backend.apply_mask_,
        sign_hashes_=triton_backend.sign_hashes_,
    )
)
register(
    Backend(
        name="cuda",
        devices=frozenset({"cuda", "cpu"} if cuda.emulated() else {"cuda"}),
        dtypes=frozenset(FLOAT_TYPES),
        status=lambda: BackendStatus(*cuda.status()),
        sign_histogram_=cuda.sign_histogram_,
        sign_histograms_=cuda.sign_histograms_,
        masked_topk_=cuda.masked_topk_,
        apply_mask_=cuda.apply_mask_,
        topk_count_=cuda.topk_count_,
        sign_hashes_=cuda.sign_hashes_,
    )
)
register(
    Backend(
        name="cpu",
        devices=frozenset({"cpu"}),
        dtypes=frozenset(cpu.DTYPE_CODES),
        status=lambda: BackendStatus(*cpu.status()),
        sign_histogram_=cpu.sign_histogram_,
        sign_histograms_=cpu.sign_histograms_,
        masked_topk_=cpu.masked_topk_,
        apply_mask_=cpu.apply_mask_,
        sign_hashes_=cpu.sign_hashes_,
        topk_count_=cpu.topk_count_,
    )
)
reserve()
