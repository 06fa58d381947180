"""Dispatch and registration of `layercollapse.ops`, whichever backend runs."""

import subprocess
import sys
from functools import partial

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


# --- torch.library ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", AVAILABLE)
def test_opcheck(backend):
    make, bits = partial(dense, device=DEVICES[backend]), partial(full_mask, device=DEVICES[backend])
    with ops.use_backend(backend):
        out = torch.zeros(3, 5, dtype=torch.int64, device=DEVICES[backend])
        torch.library.opcheck(torch.ops.layercollapse.sign_hashes.default, (make(2, 70, 5), 1))
        torch.library.opcheck(torch.ops.layercollapse.sign_histogram_.default, (make(2, 3, 5), 1, 6.0, out))
        outs = [out.clone(), torch.zeros(3, 4, dtype=torch.int64, device=DEVICES[backend])]
        both = ([make(2, 3, 5), make(3)], [1, 0], [6.0, 0.0], outs)
        torch.library.opcheck(torch.ops.layercollapse.sign_histograms_.default, both)
        weights, masks = [make(3, 3), make(20)], [bits(9), bits(20)]
        op = torch.ops.layercollapse.masked_topk_.default
        torch.library.opcheck(op, (weights, masks, [2, 0], "layer"))
        torch.library.opcheck(op, (weights, masks, [4], "global"))
        torch.library.opcheck(torch.ops.layercollapse.topk_count.default, (weights, masks, 0, 0x40000000))
        torch.library.opcheck(torch.ops.layercollapse.apply_mask_.default, (weights, masks))
    assert ops.last_backend() == backend


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_function_calls_them(backend, dynamic):
    make, bits = partial(dense, device=DEVICES[backend]), partial(full_mask, device=DEVICES[backend])

    def step(weight, mask, other, other_mask, k):
        thresholds = ops.masked_topk_([weight, other], [mask, other_mask], k)
        weight.add_(2.0)
        ops.apply_mask_([weight, other], [mask, other_mask])
        counts = ops.sign_histogram(weight * 1, channel_dim=0)
        lists = ops.sign_histogram([weight, other * 1], channel_dim=[0, 1], upper=[None, 2.0])
        lists = ops.sign_histogram((other, weight), channel_dim=0, out=[lists[1][:2, :4].clone(), lists[0]])
        return thresholds + 1, ops.sign_histogram(other, channel_dim=0, out=counts[:2].clone()), *lists

    def inputs():
        return make(4, 5), bits(20), make(2, 8), bits(16)

    eager, traced = inputs(), inputs()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    with ops.use_backend("reference"):
        expected = step(*eager, 3)
    with ops.use_backend(backend):
        got = compiled(*traced, 3)
    assert ops.last_backend() == backend
    for a, b in zip((*expected, *eager), (*got, *traced), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("key", ["CPU", "CUDA", "MPS", "XPU", "HPU", "PrivateUse1"])
@pytest.mark.parametrize("op", ["sign_histogram_", "masked_topk_", "apply_mask_", "sign_hashes"])
def test_every_device_has_an_implementation(op, key):
    # The reference is plain torch and runs on devices that nobody here has.
    assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"layercollapse::{op}", key)


def test_meta_tensors_have_shapes():
    assert ops.sign_histogram(torch.empty(2, 3, device="meta"), upper=6.0).shape == (3, 5)
    weights, masks = torch.empty(9, device="meta"), torch.empty(2, dtype=torch.uint8, device="meta")
    assert ops.masked_topk_(weights, masks, 3).shape == (1,)
    ops.apply_mask_(weights, masks)
    assert ops.sign_hashes(torch.empty(2, 3, 4, device="meta")).shape == (2, 4)


def test_numbers_of_numpy_are_numbers():
    counts = ops.sign_histogram(dense(2, 3), channel_dim=np.int64(1), upper=np.float32(6))
    assert torch.equal(counts, ops.sign_histogram(dense(2, 3), channel_dim=1, upper=6.0))


@pytest.mark.parametrize("op", [lambda *a: ops.masked_topk_(*a, 1), ops.apply_mask_])
def test_writing_a_saved_weight_is_noticed_by_autograd(op):
    weight = torch.ones(4, requires_grad=True)
    loss = (weight * weight).sum()
    op(weight, full_mask(4))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_parameters_and_inference_mode():
    parameter = torch.nn.Parameter(dense(8))
    ops.masked_topk_(parameter, full_mask(8), 2)
    assert parameter.requires_grad
    assert parameter.tolist() == [-3, -2, 0, 0, 1, 2, 3, 4]
    with torch.inference_mode():
        assert ops.sign_histogram(dense(8), channel_dim=0).sum() == 8
        ops.masked_topk_(dense(8), full_mask(8), 2)


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
