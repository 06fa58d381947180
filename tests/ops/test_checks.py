"""Bad input of the ops: one error, which names the argument; nothing has changed."""

from functools import partial

import pytest
import torch

from backends import AVAILABLE, DEVICES, dense, full_mask
from layercollapse import LayerCollapseError, ops

pytestmark = pytest.mark.usefixtures("chosen_by_device")


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


def test_mask_bad_input():
    with pytest.raises(LayerCollapseError, match="mask: expected a bool tensor, got uint8"):
        ops.pack_mask(torch.ones(3, dtype=torch.uint8))
    with pytest.raises(LayerCollapseError, match=r"packed: expected a uint8 tensor of shape \(2,\) for shape \(3, 3\)"):
        ops.unpack_mask(torch.ones(1, dtype=torch.uint8), (3, 3))
    for shape in (4, "4", (-4,), (4.0,)):
        with pytest.raises(LayerCollapseError, match="shape: expected a tuple of sizes that are not below 0, got"):
            ops.unpack_mask(full_mask(4), shape)
