"""The ops as torch knows them: their schemas and fakes, in compiled functions, on every device, under autograd."""

from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from backends import AVAILABLE, DEVICES, dense, full_mask
from layercollapse import ops

pytestmark = pytest.mark.usefixtures("chosen_by_device")


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


def test_what_must_see_an_op_sees_it():
    """A call goes past torch's dispatcher only where nothing would notice."""
    x, expected = torch.tensor([[-1.0, 0.0, 2.0]]), [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    with torch.profiler.profile() as profile:
        assert ops.sign_histogram(x).tolist() == expected
    assert "layercollapse::sign_histogram_" in {event.name for event in profile.events()}
    seen = []

    class Seeing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Seeing():
        assert ops.sign_histogram(x).tolist() == expected
    assert torch.ops.layercollapse.sign_histogram_.default in seen
    assert ops.sign_histogram(torch.empty(2, 3, device="meta")).shape == (3, 4)
    with FakeTensorMode() as fake:
        assert ops.sign_histogram(fake.from_tensor(x)).shape == (3, 4)
    negated = torch.complex(x, x).conj().imag
    assert negated.is_neg()
    assert ops.sign_histogram(negated).tolist() == [[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]]
    with pytest.raises(RuntimeError, match=r"vmap|Batch"):
        torch.vmap(lambda row: ops.sign_histogram(row, channel_dim=0))(x)
