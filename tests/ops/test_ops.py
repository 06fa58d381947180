"""Dispatch and registration of `layercollapse.ops`, whichever backend runs."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from backends import AVAILABLE, DEVICES, dense, full_mask
from layercollapse import LayerCollapseError, ops

pytestmark = pytest.mark.usefixtures("chosen_by_device")


# --- dispatch ---------------------------------------------------------------------------------------------


def test_reference_is_always_there_and_every_status_says_how_or_why():
    statuses = ops.backends()
    assert statuses["reference"].available
    assert all(status.detail for status in statuses.values())


def test_use_backend_is_a_context_manager_and_a_plain_call():
    with pytest.raises(RuntimeError, match="stop"), ops.use_backend("reference"):
        raise RuntimeError("stop")
    ops.use_backend("reference")
    assert ops.sign_histogram(dense(2, 3)).sum() == 6
    ops.use_backend("auto")


def test_use_backend_can_be_entered_again():
    choice = ops.use_backend("reference")
    for _ in range(2):
        with choice:
            ops.sign_histogram(dense(2, 3))
            assert ops.last_backend() == "reference"
            with ops.use_backend("auto"), choice:
                ops.sign_histogram(dense(2, 3))
                assert ops.last_backend() == "reference"
        with ops.use_backend("auto"):
            pass
    ops.use_backend("auto")


def test_unknown_backend_is_named():
    with pytest.raises(LayerCollapseError, match=r"use_backend: expected one of 'auto', 'reference'.*'tpu'"):
        ops.use_backend("tpu")


@pytest.mark.skipif("cpu" not in AVAILABLE, reason="the C++ part is not built")
def test_forced_backend_raises_rather_than_falls_back():
    x = dense(2, 3, dtype=torch.float64)
    assert ops.sign_histogram(x).sum() == 6
    with ops.use_backend("cpu"), pytest.raises(LayerCollapseError, match=r"'cpu' was forced.*float64"):
        ops.sign_histogram(x)


def test_numbers_of_numpy_are_numbers():
    counts = ops.sign_histogram(dense(2, 3), channel_dim=np.int64(1), upper=np.float32(6))
    assert torch.equal(counts, ops.sign_histogram(dense(2, 3), channel_dim=1, upper=6.0))


@pytest.mark.parametrize("backend", AVAILABLE)
def test_tensors_made_in_inference_mode_are_written_outside_of_it(backend):
    with torch.inference_mode():
        counts = torch.zeros(8, 4, dtype=torch.int64, device=DEVICES[backend])
        weight, mask = dense(8, device=DEVICES[backend]), full_mask(8, DEVICES[backend])
    with ops.use_backend(backend):
        ops.sign_histogram(weight, channel_dim=0, out=counts)
        assert counts.sum() == 8
        assert not ops.masked_topk_(weight, mask, 2).is_inference()
        ops.apply_mask_(weight, mask)
        assert (weight == 0).sum() == 2


def test_the_default_device_is_none_of_the_ops_business():
    torch.set_default_device("meta")
    try:
        weight, mask = torch.ones(9, device="cpu"), ops.pack_mask(torch.ones(9, dtype=torch.bool, device="cpu"))
        made = [ops.sign_histogram(weight[:, None]), ops.sign_hashes(weight[:, None]), ops.topk_count(weight, mask)]
        made += [ops.masked_topk_(weight, mask, 4), ops.sign_patterns(weight[:, None]).to_tensor()]
    finally:
        torch.set_default_device(None)
    assert [str(tensor.device) for tensor in made] == ["cpu"] * 5


# --- masks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (8,), (9,), (3, 0, 2), (3, 5, 7), (64, 3, 3)])
def test_pack_mask_is_numpy_packbits_and_back(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    packed = ops.pack_mask(mask)
    assert packed.numpy().tolist() == np.packbits(mask.numpy(), bitorder="little").tolist()
    assert torch.equal(ops.unpack_mask(packed, shape), mask)


def test_pack_mask_reads_in_logical_order():
    mask = torch.tensor([[True, False, False], [True, True, False]])
    assert ops.pack_mask(mask.t().contiguous().t()).tolist() == [0b011001]


def test_no_weights():
    assert ops.masked_topk_([], [], 0).shape == (0,)
    assert ops.apply_mask_([], []) is None
    assert ops.masked_topk_([], [], 0, scope="global").tolist() == [0]
    with pytest.raises(LayerCollapseError, match="at most the 0 entries"):
        ops.masked_topk_([], [], 1, scope="global")


def test_importing_ops_is_quick_and_needs_no_compiler():
    script = (
        "import sys, time, torch; start = time.process_time(); import layercollapse.ops;"
        "assert 'setuptools' not in sys.modules; print(time.process_time() - start)"
    )
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert float(run.stdout) < 1.0
