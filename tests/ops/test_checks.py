"""Bad input of the ops: one error, which names the argument; nothing has changed."""

import warnings
from functools import partial

import pytest
import torch

from backends import AVAILABLE, DEVICES, dense, full_mask
from layercollapse import LayerCollapseError, ops

pytestmark = pytest.mark.usefixtures("chosen_by_device")


def zeros(device="cpu"):
    return torch.zeros(3, 4, dtype=torch.int64, device=device)


def nested():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype, says torch
        return torch.nested.nested_tensor([torch.ones(2)])


shared = zeros()
INSIDE = shared.view(torch.float32)[:, ::3]  # (3, 3)

BAD_HISTOGRAM = [
    ({"x": 1.0}, "x: expected a tensor or a list of tensors, got float"),
    ({"x": torch.ones(2, 3, dtype=torch.int32)}, "x: expected .*float32.*, got int32 of shape"),
    ({"x": torch.ones(2, 3).to_sparse()}, "x: expected a dense .*layout"),
    ({"x": torch.ones(3)}, "channel_dim: expected a dimension of x, which has 1, got 1"),
    ({"x": torch.tensor(1.0), "channel_dim": 0}, "channel_dim"),
    ({"x": torch.ones(2, 3), "channel_dim": -3}, "channel_dim"),
    ({"x": torch.ones(2, 3), "channel_dim": 1.0}, "channel_dim: expected an int of at most 64 bits, got 1.0"),
    ({"x": torch.ones(2, 3), "channel_dim": "C"}, "channel_dim: expected an int of at most 64 bits, got 'C'"),
    ({"x": torch.ones(2, 3), "channel_dim": True}, "channel_dim: expected an int of at most 64 bits, got True"),
    ({"x": [torch.ones(2, 3)], "channel_dim": torch.ones(2)}, r"channel_dim\[0\]: expected an int"),
    ({"x": torch.ones([1] * 70)}, "x: expected at most 64 dimensions, got 70"),
    ({"x": torch.ones([1] * 70).double()}, "x: expected at most 64 dimensions, got 70"),
    ({"x": nested()}, "x: expected a dense .*, got a nested float32 tensor on cpu"),
    ({"x": torch.ones(2, 3), "upper": True}, "upper: expected a float32 above 0, got True"),
    ({"x": torch.ones(2, 3), "upper": torch.ones(2)}, "upper: expected a float32 above 0, got tensor"),
    ({"x": torch.ones(2, 3), "upper": 10**400}, "upper: expected a float32 above 0, got 1000"),
    ({"x": torch.ones(2, 3), "upper": 0.0}, "upper: expected a float32 above 0, got 0.0"),
    ({"x": torch.ones(2, 3), "upper": "6"}, "upper: expected a float32 above 0, got '6'"),
    ({"x": torch.ones(2, 3), "upper": float("nan")}, "upper"),
    ({"x": torch.ones(2, 3), "upper": 1e-46}, "upper"),
    ({"x": torch.ones(2, 3), "out": torch.zeros(3, 5, dtype=torch.int64)}, r"out: .*\(3, 4\), got int64.*\(3, 5\)"),
    ({"x": torch.ones(2, 3), "out": torch.zeros(3, 4)}, "out: .*int64.*, got float32"),
    ({"x": torch.ones(2, 3), "out": torch.zeros(4, 3, dtype=torch.int64).t()}, "out: .*contiguous.*strides"),
    ({"x": torch.ones(2, 3), "out": []}, "out: expected a tensor, got list"),
    ({"x": torch.ones(2, 3), "out": zeros("meta")}, "out: expected the device of x, cpu, got meta"),
    ({"x": torch.ones(2, 3, device="meta"), "out": zeros()}, "out: expected the device of x, meta, got cpu"),
    ({"x": [torch.ones(2, 3)], "out": [zeros("meta")]}, r"out\[0\]: expected the device of x\[0\], cpu, got meta"),
    ({"x": INSIDE[:2], "out": shared}, "out: expected memory of its own, .* x covers"),
    (
        {"x": [torch.ones(2, 3), INSIDE[1:]], "out": [zeros(), shared]},
        r"out\[1\]: .*x\[1\]",
    ),
    (
        {"x": [INSIDE[1:], torch.ones(2, 3)], "out": [zeros(), shared]},
        r"out\[1\]: .*x\[0\]",
    ),
    ({"x": torch.ones(2, 3), "out": torch._neg_view(torch.zeros(3, 4, dtype=torch.int64))}, "out: .*a negated view"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_HISTOGRAM)
def test_sign_histogram_bad_input(arguments, message):
    with pytest.raises(LayerCollapseError, match=message):
        ops.sign_histogram(**arguments)
    outs = arguments.get("out", [])
    assert not any(out.any() for out in (outs if isinstance(outs, list) else [outs]) if out.device.type == "cpu")


twice = torch.ones(16)


BAD_TOPK = [
    (("w", full_mask(4), 1), "weights: expected a tensor or a list of tensors, got str"),
    ((torch.ones(4), [None], 1), "masks: expected a tensor or a list of tensors"),
    ((torch.ones(4), full_mask(9), 1), r"masks\[0\]: .*\(1,\).*4 entries, got uint8 of shape \(2,\)"),
    ((torch.ones(4), torch.ones(4, dtype=torch.bool), 1), r"masks\[0\]: .*got bool"),
    ((torch.ones(16), torch.ones(4, dtype=torch.uint8)[::2], 1), r"masks\[0\]: .*contiguous"),
    ((torch.ones(4, dtype=torch.int64), full_mask(4), 1), r"weights\[0\]: .*got int64"),
    ((torch.ones(1).expand(9), full_mask(9), 1), r"weights\[0\]: .*own place in memory.*strides \(0,\)"),
    (([twice, twice], [full_mask(16), full_mask(16)], 1), r"weights\[1\]: expected memory of its own.*weights\[0\]"),
    (([twice[:9], twice[8:]], [full_mask(9), full_mask(8)], 1), "expected memory of its own"),
    ((torch.ones(4), full_mask(4), -1), "k: expected numbers of at least 0, got -1"),
    ((torch.ones(4), full_mask(4), 1.0), "k: expected an int of at most 64 bits, got 1.0"),
    ((torch.ones(4), full_mask(4), True), "k: expected an int of at most 64 bits, got True"),
    ((torch.ones(4), full_mask(4), [2**63]), "k: expected an int of at most 64 bits, got 9223372036854775808"),
    ((torch.ones([1] * 70), full_mask(1), 1), r"weights\[0\]: expected at most 64 dimensions, got 70"),
    ((torch.ones(4), full_mask(4, "meta"), 1), r"masks\[0\]: .* device of weights\[0\], cpu, got meta"),
    ((torch.ones(4, device="meta"), full_mask(4), 1), r"masks\[0\]: .* device of weights\[0\], meta, got cpu"),
    ((nested(), full_mask(2), 1), "weights: expected a dense tensor, got a nested float32"),
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w, m: ops.topk_count(w, m, lo="a"), "lo: expected an int of at most 64 bits, got 'a'"),
        (lambda w, m: ops.topk_count(w, m, hi=2**70), "hi: expected an int"),
        (lambda w, m: ops.topk_count(w, m.to("meta")), r"masks\[0\]: expected the device"),
        (lambda w, m: ops.topk_threshold(ops.topk_count(w, m).float(), 1), "counts: expected an int64.*got float32"),
        (lambda w, m: ops.topk_threshold(ops.topk_count(w, m), 1.0), "k: expected an int of at most 64 bits, got 1.0"),
        (lambda w, m: ops.topk_apply(w, m, "a", 0), "threshold: expected an int of at most 64 bits, got 'a'"),
        (lambda w, m: ops.topk_apply(w, m, ops.TOPK_END, 0), "threshold: expected a key from 0 to below 0x7f800001"),
        (lambda w, m: ops.topk_apply(w, m, 0x3F800000, True), "ties: expected an int of at most 64 bits, got True"),
        (lambda w, m: ops.pack_mask(torch.ones(2, dtype=torch.bool).to_sparse()), "mask: expected a dense bool tensor"),
        (lambda w, m: ops.unpack_mask(m, (True, 4)), r"shape: expected a tuple of sizes.*got \(True, 4\)"),
        (lambda w, m: ops.unpack_mask(m.to_sparse(), (4,)), "packed: expected a uint8 tensor"),
        (lambda w, m: ops.use_backend(["cpu"]), r"use_backend: expected one of .*, got \['cpu'\]"),
    ],
)
def test_bad_input_of_the_others(call, message):
    weight, mask = torch.ones(4), full_mask(4)
    with pytest.raises(LayerCollapseError, match=message):
        call(weight, mask)
    assert (weight.tolist(), mask.tolist()) == ([1] * 4, [15])


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


def test_mask_bad_input():
    with pytest.raises(LayerCollapseError, match="mask: expected a dense bool tensor, got uint8"):
        ops.pack_mask(torch.ones(3, dtype=torch.uint8))
    with pytest.raises(LayerCollapseError, match=r"packed: expected a uint8 tensor of shape \(2,\) for shape \(3, 3\)"):
        ops.unpack_mask(torch.ones(1, dtype=torch.uint8), (3, 3))
    for shape in (4, "4", (-4,), (4.0,)):
        with pytest.raises(LayerCollapseError, match="shape: expected a tuple of sizes that are not below 0, got"):
            ops.unpack_mask(full_mask(4), shape)
