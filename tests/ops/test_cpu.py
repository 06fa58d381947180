"""What the C++ backend says of itself, and what reaches the core: strides, dtypes and threads."""

import sys

import pytest
import torch

from layercollapse import ops
from layercollapse.ops import cpu, reference

pytestmark = pytest.mark.skipif(not ops.backends()["cpu"].available, reason="the C++ part is not built")


def test_the_status_names_the_instruction_set(isa):
    cpu.status.cache_clear()
    try:
        available, detail = cpu.status()
        assert available
        assert detail.startswith("C++, ")
        from layercollapse_core import _core

        assert f"C++, {_core.isa()}, " in detail
    finally:
        cpu.status.cache_clear()


def test_without_the_core_it_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "layercollapse_core", None)
    cpu.status.cache_clear()
    try:
        available, detail = cpu.status()
        assert not available
        assert detail.startswith("the C++ core is not built: install with GCC or Clang (")
    finally:
        cpu.status.cache_clear()


@pytest.mark.parametrize("dtype", list(cpu.DTYPE_CODES), ids=str)
def test_every_op_reads_strides(dtype, threads):
    x = (torch.arange(6 * 10 * 4).reshape(6, 10, 4) % 7 - 3).to(dtype)[::2, 1:].movedim(1, -1)  # (3, 4, 9)
    for channel_dim in (0, 1, -1):
        counts = [torch.zeros(x.shape[channel_dim], 5, dtype=torch.int64) for _ in range(2)]
        cpu.sign_histogram_(x, channel_dim, 2.0, counts[0])
        reference.sign_histogram_(x, channel_dim, 2.0, counts[1])
        assert torch.equal(*counts)
        hashes = [torch.zeros(x.numel() // x.shape[channel_dim], dtype=torch.int64) for _ in range(2)]
        cpu.sign_hashes_(x, channel_dim, hashes[0])
        reference.sign_hashes_(x, channel_dim, hashes[1])
        assert torch.equal(*hashes)


@pytest.mark.parametrize("dtype", list(cpu.DTYPE_CODES), ids=str)
def test_weights_are_changed_in_place_whatever_their_strides(dtype):
    def weights():
        return [((torch.arange(24).reshape(4, 6) * 5 % 23 - 11).to(dtype)).t(), torch.ones(3, dtype=dtype)]

    results = []
    for backend in (cpu, reference):
        ours, masks = weights(), [torch.full((3,), 255, dtype=torch.uint8), torch.full((1,), 255, dtype=torch.uint8)]
        thresholds = backend.masked_topk_(ours, masks, [10, 1], "layer")
        counts = torch.zeros(3 + ops.TOPK_BINS, dtype=torch.int64)
        backend.topk_count_(ours, masks, 0, 2**30, counts)
        ours[0].fill_(3)
        backend.apply_mask_(ours, masks)
        results.append([thresholds, counts, *ours, *masks])
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
