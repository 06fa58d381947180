"""Calls with the tensors of an earlier one: what was checked is not checked again, and whatever changed is noticed.

tests/kernels/test_gpu_on_cpu.py runs this file too, with Triton's interpreter and with the CUDA sources compiled for
the CPU.
"""

from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from layercollapse import LayerCollapseError, ops
from layercollapse.kernels import cuda, triton_backend
from layercollapse.ops import checks, repeats

SIMULATED = triton_backend.interpreted() or cuda.emulated()


@pytest.fixture(params=[name for name, status in ops.backends().items() if status.available and name != "reference"])
def backend(request):
    repeats.clear()
    with ops.use_backend(request.param):
        yield request.param
    repeats.clear()


@pytest.fixture
def device(backend):
    return "cuda" if backend in ("triton", "cuda") and not SIMULATED else "cpu"


def pairs(device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(4, 6), (33,), (2, 3, 5)]
    weights = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    return weights, [ops.pack_mask(torch.rand(shape, generator=generator) < 0.7).to(device) for shape in shapes]


def repeated(call, monkeypatch):
    """The call, and whether it checked its tensors."""
    checked = []
    check = checks.check_masked
    with monkeypatch.context() as patch:
        patch.setattr(checks, "check_masked", lambda *tensors: checked.append(1) or check(*tensors))
        call()
    return not checked


def expected(weights, masks):
    return [
        torch.where(ops.unpack_mask(mask, weight.shape), weight, 0) for weight, mask in zip(weights, masks, strict=True)
    ]


def same(tensors, others):
    return all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


def test_the_third_call_checks_nothing_and_masks(backend, device, monkeypatch):
    weights, masks = pairs(device)
    for turn in range(5):
        for weight in weights:
            weight.normal_()
        after = expected(weights, masks)
        lists = (tuple(weights), tuple(masks)) if turn % 2 else (weights, masks)  # new lists of the same tensors
        assert repeated(partial(ops.apply_mask_, *lists), monkeypatch) == (turn >= 2)
        assert same(weights, after)
        assert ops.last_backend() == backend


def test_parameters(backend, device, monkeypatch):
    weights, masks = pairs(device)
    weights = [torch.nn.Parameter(weight) for weight in weights]
    for turn in range(3):
        with torch.no_grad():
            for weight in weights:
                weight.normal_()
        after = expected([weight.detach() for weight in weights], masks)
        assert repeated(lambda: ops.apply_mask_(weights, masks), monkeypatch) == (turn == 2)
        assert same(weights, after)
        assert all(weight.is_leaf and weight.requires_grad for weight in weights)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_every_k_of_masked_topk(backend, device, monkeypatch, scope):
    weights, masks = pairs(device)
    thresholds = []
    for turn, k in enumerate([1, 0, 2, 3, 1]):
        copies = [[tensor.cpu().clone() for tensor in tensors] for tensors in (weights, masks)]
        with ops.use_backend("reference"):
            want = ops.masked_topk_(*copies, k, scope=scope)
        assert repeated(
            lambda k=k: thresholds.append(ops.masked_topk_(weights, masks, k, scope=scope)), monkeypatch
        ) == (turn >= 2)
        assert torch.equal(thresholds[-1].cpu(), want)
        assert same([tensor.cpu() for tensor in (*weights, *masks)], [*copies[0], *copies[1]])


def test_errors_of_masked_topk_stay(backend, device):
    weights, masks = pairs(device)
    for _ in range(3):
        ops.masked_topk_(weights, masks, [0, 0, 0])
    before = [tensor.clone() for tensor in (*weights, *masks)]
    for k, message in [
        ([0, 0], "k: expected 3 numbers"),
        ([0, -1, 0], "at least 0, got -1"),
        ([0, 34, 0], r"k\[1\]: expected at most"),
        (True, "k: expected an int"),
    ]:
        with pytest.raises(LayerCollapseError, match=message):
            ops.masked_topk_(weights, masks, k)
    assert same((*weights, *masks), before)
    weights[2][0, 0, 0] = float("nan")
    with pytest.raises(LayerCollapseError, match=r"weights\[2\]: expected numbers, got NaN"):
        ops.masked_topk_(weights, masks, 1)


def become(tensor, other):
    tensor.data = other


CHANGES = {
    "other memory": lambda weights, masks: become(weights[1], torch.randn_like(weights[1])),
    "other masks": lambda weights, masks: become(masks[0], ~masks[0]),
    "other strides": lambda weights, masks: weights[0].t_(),
    "other sizes": lambda weights, masks: weights[2].resize_(5, 6),
    "strides alone": lambda weights, masks: become(weights[0], torch.empty_like(weights[0].t()).t()),
    "another type": lambda weights, masks: become(weights[1], weights[1].bfloat16()),
    "set_": lambda weights, masks: weights[1].set_(torch.randn_like(weights[1])),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_tensor_has_become_is_noticed(backend, device, change, monkeypatch):
    weights, masks = pairs(device)
    for _ in range(3):
        ops.apply_mask_(weights, masks)
    assert repeated(lambda: ops.apply_mask_(weights, masks), monkeypatch)
    CHANGES[change](weights, masks)
    for weight in weights:
        weight.normal_()
    after = expected(weights, masks)
    assert not repeated(lambda: ops.apply_mask_(weights, masks), monkeypatch)
    assert same(weights, after)


FAULTS = {
    "memory twice": (lambda weights, masks: become(weights[1], weights[1][:1].expand(33)), "expected every entry"),
    "another mask's length": (lambda weights, masks: masks[0].resize_(2), r"masks\[0\]: expected a contiguous uint8"),
    "the mask of two": (lambda weights, masks: become(masks[2], masks[1][:4]), "expected memory of its own"),
    "an integer": (lambda weights, masks: become(weights[0], weights[0].long()), r"weights\[0\]: expected a dense"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_now_is_an_error(backend, device, fault):
    weights, masks = pairs(device)
    for _ in range(3):
        ops.apply_mask_(weights, masks)
    change, message = FAULTS[fault]
    change(weights, masks)
    for _ in range(3):
        with pytest.raises(LayerCollapseError, match=message):
            ops.apply_mask_(weights, masks)


def test_a_negated_view_is_no_repeat(backend, device):
    weights, masks = pairs(device)
    for _ in range(3):
        ops.apply_mask_(weights, masks)
    with pytest.raises(LayerCollapseError, match="negated view"):
        ops.apply_mask_([torch._neg_view(weights[0]), *weights[1:]], masks)


def test_modes_of_torch_see_every_call(backend, device):
    weights, masks = pairs(device)
    for _ in range(3):
        ops.apply_mask_(weights, masks)
    seen = []

    class Dispatched(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    class Function(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    for mode in (Dispatched, Function):
        del seen[:]
        with mode():
            ops.apply_mask_(weights, masks)
        assert any("apply_mask_" in name for name in seen)
    before = [weight.normal_().clone() for weight in weights]
    with FakeTensorMode(allow_non_fake_inputs=True):
        ops.apply_mask_(weights, masks)
    assert same(weights, before)


def test_another_choice_of_backend(backend, device):
    weights, masks = pairs(device)
    for _ in range(3):
        ops.apply_mask_(weights, masks)
    with ops.use_backend("reference"):
        ops.apply_mask_(weights, masks)
        assert ops.last_backend() == "reference"
    ops.apply_mask_(weights, masks)
    assert ops.last_backend() == backend


def test_autograd_notices(backend, device):
    weights, masks = pairs(device)
    factor = torch.ones(33, device=device, requires_grad=True)
    for _ in range(3):
        product = (weights[1] * factor).sum()
        ops.apply_mask_(weights, masks)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()


def test_a_captured_call_is_checked(backend, device, monkeypatch):
    weights, masks = pairs(device)
    for _ in range(3):
        ops.apply_mask_(weights, masks)
    monkeypatch.setattr(repeats, "capturing", lambda tensor: True)
    assert not repeated(lambda: ops.apply_mask_(weights, masks), monkeypatch)


def test_few_calls_are_kept(backend, device):
    for seed in range(repeats.MOST + 3):
        weights, masks = pairs(device, seed)
        for _ in range(2):
            ops.apply_mask_(weights, masks)
    assert len(repeats._kept) <= repeats.MOST


def test_without_what_torch_keeps_private(backend, device, monkeypatch):
    monkeypatch.setattr(repeats, "TensorGuards", None)
    weights, masks = pairs(device)
    for _ in range(4):
        assert not repeated(lambda: ops.apply_mask_(weights, masks), monkeypatch)


LAYOUTS = {
    "plain": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
}


def activations(device, count, layout="plain", seed=0):
    generator = torch.Generator().manual_seed(seed)
    xs = [torch.randn(2, 3 + index, 4, 5, generator=generator) for index in range(count)]
    return [LAYOUTS[layout](x.to(device)) for x in xs]


def signs(xs, upper=None):
    with ops.use_backend("reference"):
        return [ops.sign_histogram(x, upper=upper) for x in xs]


def unchecked(call, monkeypatch):
    checked = []
    check = checks.check_activation
    with monkeypatch.context() as patch:
        patch.setattr(checks, "check_activation", lambda *arguments: checked.append(1) or check(*arguments))
        call()
    return not checked


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("upper", [None, 0.5])
@pytest.mark.parametrize("count", [1, 3])
def test_counting_activations_of_the_same_layouts(backend, device, count, layout, upper, monkeypatch):
    first = activations(device, count, layout)
    outs = [torch.zeros_like(counts) for counts in signs(first, upper)]
    held = [first]
    for turn in range(6):
        xs = first if turn == 4 else activations(device, count, layout, turn)  # elsewhere, as long as the others live
        held.append(xs)
        want = [out + counts for out, counts in zip(outs, signs(xs, upper), strict=True)]
        one = count == 1
        call = partial(ops.sign_histogram, xs[0] if one else xs, upper=upper, out=outs[0] if one else outs)
        assert unchecked(call, monkeypatch) == (turn >= 2)
        assert ops.last_backend() == backend
        assert same(outs, want)


def test_counting_of_one_tensor_in_another_place(backend, device):
    memory = torch.randn(4096, device=device)
    out = torch.zeros(3, 4, dtype=torch.int64, device=device)
    for turn, place in enumerate([0, 0, 0, 64, 1, 2, 3, 1, 1, 1, 0]):
        x = memory[place : place + 3000].view(10, 3, 100)
        want = out + signs([x])[0]
        ops.sign_histogram(x, out=out)
        assert torch.equal(out, want), turn


@pytest.mark.parametrize("arguments", [{"channel_dim": True}, {"upper": True}, {"upper": -1.0}, {"channel_dim": 5}])
@pytest.mark.parametrize("several", [False, True])
def test_arguments_of_counting_that_equal_others_are_none(backend, device, arguments, several):
    x = activations(device, 1)[0]
    out = torch.zeros(3, 5 if "upper" in arguments else 4, dtype=torch.int64, device=device)
    good = {"channel_dim": 1, "upper": 1.0 if "upper" in arguments else None}
    for _ in range(3):
        ops.sign_histogram([x] if several else x, **good, out=[out] if several else out)
    before = out.clone()
    with pytest.raises(LayerCollapseError, match=next(iter(arguments))):
        ops.sign_histogram([x] if several else x, **{**good, **arguments}, out=[out] if several else out)
    assert torch.equal(out, before)


@pytest.mark.parametrize("several", [False, True])
def test_counts_that_an_activation_covers_now(backend, device, several):
    memory = torch.zeros(96, dtype=torch.int64, device=device)
    out = memory[:12].view(3, 4)
    whole = memory.view(torch.float32)
    apart, covered = (whole[start : start + 24].view(2, 3, 4) for start in (48, 16))
    for _ in range(3):
        ops.sign_histogram([apart] if several else apart, out=[out] if several else out)
    before = memory.clone()
    with pytest.raises(LayerCollapseError, match="expected memory of its own"):
        ops.sign_histogram([covered] if several else covered, out=[out] if several else out)
    assert torch.equal(memory, before)


def test_counts_that_became_others(backend, device):
    x = activations(device, 1)[0]
    out = torch.zeros(3, 4, dtype=torch.int64, device=device)
    for _ in range(3):
        ops.sign_histogram(x, out=out)
    kept = out.clone()
    old = out.data
    out.data = torch.zeros_like(out)
    ops.sign_histogram(x, out=out)
    assert torch.equal(out, signs([x])[0])
    assert torch.equal(old, kept)
    out.resize_(2, 4)
    with pytest.raises(LayerCollapseError, match="out: expected a contiguous int64"):
        ops.sign_histogram(x, out=out)


def test_empty_activations_among_others(backend, device):
    xs = [torch.zeros(0, 3, device=device), activations(device, 1)[0], torch.zeros(2, 0, device=device)]
    outs = [torch.zeros(n, 4, dtype=torch.int64, device=device) for n in (3, 3, 0)]
    for turn in range(1, 5):
        ops.sign_histogram(xs, out=outs)
        assert torch.equal(outs[1], turn * signs(xs[1:2])[0])
        assert not outs[0].any()
        ops.sign_histogram(xs[0], out=outs[0])


def test_autograd_notices_counts(backend, device):
    x = activations(device, 1)[0]
    out = torch.zeros(3, 4, dtype=torch.int64, device=device)
    for _ in range(4):
        version = out._version
        ops.sign_histogram(x, out=out)
        assert out._version > version


def test_batches_of_two_sizes_in_turn(backend, device, monkeypatch):
    out = torch.zeros(3, 4, dtype=torch.int64, device=device)
    for turn in range(8):
        x = activations(device, 1, seed=turn)[0][turn % 2 :]
        want = out + signs([x])[0]
        assert unchecked(partial(ops.sign_histogram, x, out=out), monkeypatch) == (turn >= 4)
        assert torch.equal(out, want)


@pytest.mark.parametrize("x", [[1, 2], [None, None], ["ab", "cd"]])
def test_what_is_no_tensor_has_no_layout(x):
    with pytest.raises(LayerCollapseError, match=r"x\[0\]: expected a tensor"):
        ops.sign_histogram(x, out=[torch.zeros(3, 4, dtype=torch.int64)] * 2)


def test_a_nested_tensor_has_no_layout():
    with pytest.raises(LayerCollapseError, match="x: expected a dense"):
        ops.sign_histogram(torch.nested.nested_tensor([torch.ones(2)]), out=torch.zeros(3, 4, dtype=torch.int64))


def test_subclasses_see_every_call(backend, device):
    seen = []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return super().__torch_function__(function, types, args, kwargs or {})

    weights, masks = pairs(device)
    weights[1] = weights[1].as_subclass(Watched)
    x = torch.randn(4, 3, device=device).as_subclass(Watched)
    out = torch.zeros(3, 4, dtype=torch.int64, device=device)
    for _ in range(4):
        del seen[:]
        ops.apply_mask_(weights, masks)
        ops.sign_histogram(x, out=out)
        assert any("apply_mask_" in name for name in seen)
        assert any("sign_histogram_" in name for name in seen)
