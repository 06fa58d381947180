"""Dispatch, registration and bad input of `layercollapse.ops`, whichever backend runs."""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
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


@pytest.fixture(autouse=True)
def _choose_by_device():
    yield
    ops.use_backend("auto")


def dense(*shape, dtype=torch.float32, device="cpu"):
    return torch.arange(torch.Size(shape).numel(), dtype=dtype, device=device).reshape(shape) - 3


def full_mask(numel, device="cpu"):
    return ops.pack_mask(torch.ones(numel, dtype=torch.bool, device=device))


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


# --- bad input --------------------------------------------------------------------------------------------

BAD_HISTOGRAM = [
    ({"x": 1.0}, "x: expected a tensor or a list of tensors, got float"),
    ({"x": torch.ones(2, 3, dtype=torch.int32)}, "x: expected .*float32.*, got int32 of shape"),
    ({"x": torch.ones(2, 3).to_sparse()}, "x: expected a dense .*layout"),
    ({"x": torch.ones(3)}, "channel_dim: expected a dimension of x, which has 1, got 1"),
    ({"x": torch.tensor(1.0), "channel_dim": 0}, "channel_dim"),
    ({"x": torch.ones(2, 3), "channel_dim": -3}, "channel_dim"),
    ({"x": torch.ones(2, 3), "channel_dim": 1.0}, "channel_dim: expected a dimension of x, which has 2, got 1.0"),
    ({"x": torch.ones(2, 3), "channel_dim": "C"}, "channel_dim: expected a dimension of x, which has 2, got 'C'"),
    ({"x": torch.ones(2, 3), "upper": 0.0}, "upper: expected a float32 above 0, got 0.0"),
    ({"x": torch.ones(2, 3), "upper": "6"}, "upper: expected a float32 above 0, got '6'"),
    ({"x": torch.ones(2, 3), "upper": float("nan")}, "upper"),
    ({"x": torch.ones(2, 3), "upper": 1e-46}, "upper"),
    ({"x": torch.ones(2, 3), "out": torch.zeros(3, 5, dtype=torch.int64)}, r"out: .*\(3, 4\), got int64.*\(3, 5\)"),
    ({"x": torch.ones(2, 3), "out": torch.zeros(3, 4)}, "out: .*int64.*, got float32"),
    ({"x": torch.ones(2, 3), "out": torch.zeros(4, 3, dtype=torch.int64).t()}, "out: .*contiguous.*strides"),
    ({"x": torch.ones(2, 3), "out": []}, "out: expected a tensor, got list"),
    ({"x": torch.ones(2, 3), "out": torch._neg_view(torch.zeros(3, 4, dtype=torch.int64))}, "out: .*a negated view"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_HISTOGRAM)
def test_sign_histogram_bad_input(arguments, message):
    before = arguments["out"].clone() if isinstance(arguments.get("out"), torch.Tensor) else None
    with pytest.raises(LayerCollapseError, match=message):
        ops.sign_histogram(**arguments)
    assert before is None or torch.equal(arguments["out"], before)


shared = torch.ones(16)
BAD_TOPK = [
    (("w", full_mask(4), 1), "weights: expected a tensor or a list of tensors, got str"),
    ((torch.ones(4), [None], 1), "masks: expected a tensor or a list of tensors"),
    ((torch.ones(4), full_mask(9), 1), r"masks\[0\]: .*\(1,\).*4 entries, got uint8 of shape \(2,\)"),
    ((torch.ones(4), torch.ones(4, dtype=torch.bool), 1), r"masks\[0\]: .*got bool"),
    ((torch.ones(16), torch.ones(4, dtype=torch.uint8)[::2], 1), r"masks\[0\]: .*contiguous"),
    ((torch.ones(4, dtype=torch.int64), full_mask(4), 1), r"weights\[0\]: .*got int64"),
    ((torch.ones(1).expand(9), full_mask(9), 1), r"weights\[0\]: .*own place in memory.*strides \(0,\)"),
    (([shared, shared], [full_mask(16), full_mask(16)], 1), r"weights\[1\]: expected memory of its own.*weights\[0\]"),
    (([shared[:9], shared[8:]], [full_mask(9), full_mask(8)], 1), "expected memory of its own"),
    ((torch.ones(4), full_mask(4), -1), "k: expected numbers of at least 0, got -1"),
    ((torch.ones(4), full_mask(4), 1.0), "k: expected an int or a list of ints, got 1.0"),
    ((torch.ones(4), full_mask(4), True), "k: expected an int or a list of ints, got True"),
    ((torch.ones(4), full_mask(4), [1, 1]), "k: expected 1 numbers for scope='layer', got 2"),
    (([torch.ones(4)], [full_mask(4)] * 2, 1), "masks: expected one for each of 1 weights, got 2"),
    ((torch.ones(4, dtype=torch.complex64).conj().imag, full_mask(4), 1), r"weights\[0\]: .*got a negated view"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_TOPK)
def test_masked_topk_bad_input(arguments, message):
    with pytest.raises(LayerCollapseError, match=message):
        ops.masked_topk_(*arguments)
    if not message.startswith("k:"):
        with pytest.raises(LayerCollapseError, match=message):
            ops.apply_mask_(*arguments[:2])


def test_bad_masks_change_nothing():
    weights = [dense(9), dense(9)]
    with pytest.raises(LayerCollapseError, match=r"masks\[1\]: expected a contiguous uint8 tensor of shape \(2,\)"):
        ops.apply_mask_(weights, [torch.zeros(2, dtype=torch.uint8), full_mask(8)])
    assert all(torch.equal(weight, dense(9)) for weight in weights)


@pytest.mark.parametrize("scope", ["model", 3])
def test_scope_is_checked(scope):
    with pytest.raises(LayerCollapseError, match=f"scope: expected 'layer' or 'global', got {scope!r}"):
        ops.masked_topk_(torch.ones(4), full_mask(4), 1, scope=scope)


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(
    ("fault", "message"), [("nan", r"weights\[1\]: expected numbers, got NaN"), ("many", "k.*expected at most the")]
)
def test_an_error_found_in_the_data_changes_nothing(backend, scope, fault, message):
    make = partial(dense, device=DEVICES[backend])
    weights = [make(100), make(7, 9), make(300)]
    masks = [full_mask(weight.numel(), DEVICES[backend]) for weight in weights]
    masks[1][0] = 0b11111110
    k = [5, 5, 5]
    if fault == "nan":
        weights[1][0, 0] = torch.nan  # a NaN is refused even where the mask has no bit
    else:
        k[1] = 63
    k = k if scope == "layer" else [sum(k) + (1000 if fault == "many" else 0)]
    before = [tensor.clone().view(torch.uint8) for tensor in (*weights, *masks)]
    with ops.use_backend(backend), pytest.raises(LayerCollapseError, match=message):
        ops.masked_topk_(weights, masks, k, scope=scope)
    assert all(
        torch.equal(tensor.view(torch.uint8), old) for tensor, old in zip((*weights, *masks), before, strict=True)
    )


def test_no_weights():
    assert ops.masked_topk_([], [], 0).shape == (0,)
    assert ops.apply_mask_([], []) is None
    assert ops.masked_topk_([], [], 0, scope="global").tolist() == [0]
    with pytest.raises(LayerCollapseError, match="at most the 0 entries"):
        ops.masked_topk_([], [], 1, scope="global")


def test_mask_bad_input():
    with pytest.raises(LayerCollapseError, match="mask: expected a bool tensor, got uint8"):
        ops.pack_mask(torch.ones(3, dtype=torch.uint8))
    with pytest.raises(LayerCollapseError, match=r"packed: expected a uint8 tensor of shape \(2,\) for shape \(3, 3\)"):
        ops.unpack_mask(torch.ones(1, dtype=torch.uint8), (3, 3))
    for shape in (4, "4", (-4,), (4.0,)):
        with pytest.raises(LayerCollapseError, match="shape: expected a tuple of sizes that are not below 0, got"):
            ops.unpack_mask(full_mask(4), shape)


def test_importing_ops_is_quick_and_needs_no_compiler():
    script = (
        "import sys, time, torch; start = time.process_time(); import layercollapse.ops;"
        "assert 'setuptools' not in sys.modules; print(time.process_time() - start)"
    )
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert float(run.stdout) < 1.0
