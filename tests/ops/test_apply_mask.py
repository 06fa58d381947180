"""`apply_mask_` against tables made by hand and NumPy, bit for bit, on every backend that runs here.

tests/kernels/test_gpu_on_cpu.py runs this file too, with Triton's interpreter and with the CUDA sources compiled for
the CPU.
"""

import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layercollapse import LayerCollapseError, ops
from layercollapse.kernels import cuda, triton_backend
from layercollapse.ops import repeats

SLOW = triton_backend.interpreted()  # each program takes milliseconds: fewer cases, not other ones
SIMULATED = SLOW or cuda.emulated()
on_gpu = pytest.mark.skipif(SIMULATED or not torch.cuda.is_available(), reason="needs a GPU")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INT_OF = dict(zip([*DTYPES, torch.float64], [torch.int32, torch.int16, torch.int16, torch.int64], strict=True))
INF, NAN = float("inf"), float("nan")
VALUES = [0.0, -0.0, 1.0, -2.0, 1e-40, -1e-40, INF, -INF, NAN, -NAN]


def device_of(backend):
    return "cuda" if backend in ("triton", "cuda") and not SIMULATED else "cpu"


@pytest.fixture(params=[name for name, status in ops.backends().items() if status.available])
def backend(request, monkeypatch):
    if request.param == "triton":
        from layercollapse.kernels import apply_mask

        apply_mask._plans.clear()
        repeats.clear()
        if SLOW:
            monkeypatch.setattr(apply_mask, "TILE", 64)
            monkeypatch.setattr(apply_mask, "PART", 32)
    with ops.use_backend(request.param):
        yield request.param


def values(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    special = torch.tensor(VALUES)[torch.randint(len(VALUES), x.shape, generator=generator)]
    return torch.where(torch.rand(shape, generator=generator) < 0.3, special, x).to(dtype)


def random_mask(numel, density=0.5, seed=0):
    """Keep-bits, with ones as padding: which an op must not look at."""
    generator = torch.Generator().manual_seed(seed)
    mask = ops.pack_mask(torch.rand(numel, generator=generator) < density)
    if numel % 8:
        mask[-1] |= 256 - (1 << numel % 8)
    return mask


def bits_of(weight):
    return weight.cpu().contiguous().view(INT_OF[weight.dtype]).numpy().ravel()


def memory_of(weight):
    """Every byte of the storage: also what lies between the entries."""
    return torch.empty(0, dtype=torch.uint8, device=weight.device).set_(weight.untyped_storage()).cpu().clone()


def check(backend, weights, masks):
    expected = [bits_of(weight).copy() for weight in weights]
    for bits, mask in zip(expected, masks, strict=True):
        bits[np.unpackbits(mask.numpy(), bitorder="little", count=bits.size) == 0] = 0
    outside = [memory_of(weight) for weight in weights]
    device = device_of(backend)
    if device != "cpu":
        weights = [to_device(weight, device) for weight in weights]
    on_device = [mask.to(device) for mask in masks]
    assert ops.apply_mask_(weights, on_device) is None
    for weight, mask, bits, before, came in zip(weights, on_device, expected, outside, masks, strict=True):
        np.testing.assert_array_equal(bits_of(weight), bits)
        assert torch.equal(mask.cpu(), came)
        after = memory_of(weight)
        view = torch.zeros_like(after).view(weight.dtype)
        inside = view.as_strided(weight.shape, weight.stride(), weight.storage_offset()).fill_(1)
        untouched = view == 0 if inside.numel() else torch.ones_like(view, dtype=torch.bool)
        kept = untouched.repeat_interleave(weight.element_size())
        assert torch.equal(after[kept], before[kept])


def to_device(weight, device):
    """A copy on the device with the same strides, the same alignment and the same bytes between the entries."""
    storage = memory_of(weight).to(device).view(weight.dtype)
    return storage.as_strided(weight.shape, weight.stride(), weight.storage_offset())


HAND = [  # weight, keep-bits, after
    ([3.0, -1.0, 0.5, -2.0], [1, 1, 0, 1], [3.0, -1.0, 0.0, -2.0]),
    ([INF, -INF, NAN, -0.0], [0, 0, 0, 0], [0.0, 0.0, 0.0, 0.0]),
    ([INF, -0.0, 1e-40], [1, 1, 1], [INF, -0.0, 1e-40]),
    ([1.0] * 9, [0] * 8 + [1], [0.0] * 8 + [1.0]),
    ([], [], []),
]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize(("weight", "keep", "after"), HAND)
def test_tables_made_by_hand(backend, weight, keep, after, dtype):
    if dtype == torch.float64 and backend != "reference":
        pytest.skip("the reference's")
    device = device_of(backend)
    weight = torch.tensor(weight, dtype=dtype, device=device)
    ops.apply_mask_(weight, ops.pack_mask(torch.tensor(keep, dtype=torch.bool, device=device)))
    assert bits_of(weight).tolist() == bits_of(torch.tensor(after, dtype=dtype)).tolist()


def test_a_nan_that_is_kept_stays(backend):
    weight = torch.tensor([NAN, NAN, 1.0], device=device_of(backend))
    ops.apply_mask_(weight, ops.pack_mask(torch.tensor([True, False, True], device=weight.device)))
    assert weight[0].isnan()
    assert weight[1:].tolist() == [0, 1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_sizes(backend, dtype, density):
    sizes = (1, 7, 8, 63, 64, 65, 200) if SLOW else (1, 7, 8, 9, 63, 64, 65, 127, 1000, 8192, 8193, 20_011)
    for size in sizes:
        check(backend, [values(size, dtype, size)], [random_mask(size, density, size)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_weights(backend, dtype, threads):
    if SLOW and backend == "triton":
        pytest.skip("an hour in the interpreter")
    shapes = [(3 * 65536 + 77,), (65536,), (300, 256, 3)]
    weights = [values(shape, dtype, index) for index, shape in enumerate(shapes)]
    weights[2] = weights[2].transpose(1, 2).contiguous().transpose(1, 2)
    check(backend, weights, [random_mask(weight.numel(), 0.9) for weight in weights])


def test_instruction_sets(isa):
    if not ops.backends()["cpu"].available:
        pytest.skip("the C++ part is not built")
    with ops.use_backend("cpu"):
        for dtype in DTYPES:
            for size in (5, 64, 129, 4099):
                check("cpu", [values(size, dtype, size)], [random_mask(size, 0.6, size)])


LAYOUTS = {
    "channels_last": lambda d: values((6, 16, 3, 3), d).to(memory_format=torch.channels_last),
    "channels_last, odd": lambda d: values((5, 3, 3, 5), d).to(memory_format=torch.channels_last),
    "transposed": lambda d: values((24, 40), d).t(),
    "transposed, odd": lambda d: values((7, 9), d).t(),
    "part of rows": lambda d: values((9, 32), d)[:, 8:24],
    "every second": lambda d: values((9, 32), d)[:, ::2],
    "unaligned": lambda d: values((131,), d)[1:],
    "unaligned scalar": lambda d: values((3,), d)[1],
    "scalar": lambda d: values((), d),
    "no entries": lambda d: values((3, 0, 2), d),
    "eight dimensions": lambda d: values((2,) * 8, d).permute(6, 3, 0, 5, 2, 7, 1, 4),
    "a size of one with any stride": lambda d: values((4, 16), d).as_strided((4, 1, 8), (16, 3, 1)),
}


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend, layout, dtype):
    weight = LAYOUTS[layout](dtype)
    check(backend, [weight], [random_mask(weight.numel(), 0.6)])


@pytest.mark.parametrize("count", [40 if SLOW else 1100])  # more than one launch of the CUDA kernel takes
def test_many_tensors_of_all_types(backend, count):
    weights = []
    for index in range(count):
        weight = values([(8,), (3, 5), (16, 8, 2), (0,)][index % 4], DTYPES[index % 3], index)
        weights.append(weight.transpose(1, 2).contiguous().transpose(1, 2) if index % 8 == 2 else weight)
    check(backend, weights, [random_mask(weight.numel(), 0.5, index) for index, weight in enumerate(weights)])


def test_float64_among_others_runs_on_the_reference():
    weights = [values(20, torch.float64), values(20, torch.float32)]
    masks = [random_mask(20), random_mask(20, seed=1)]
    check("reference", weights, masks)
    assert ops.last_backend() == "reference"


few = settings(max_examples=6 if SLOW else 40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@few
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3),
    st.randoms(use_true_random=False),
    st.floats(0, 1),
)
def test_random_views(backend, shapes, random, density):
    weights = []
    for sizes in shapes:
        x = values(tuple(sizes), random.choice(DTYPES), random.randrange(100))
        x = x.permute(random.sample(range(x.dim()), x.dim()))
        weights.append(x[tuple(slice(random.randrange(2), None, random.choice([1, 1, 2])) for _ in x.shape)])
    check(backend, weights, [random_mask(weight.numel(), density, random.randrange(9)) for weight in weights])


def test_masking_after_masked_topk_changes_nothing(backend):
    device = device_of(backend)
    weight = torch.randn(500, generator=torch.Generator().manual_seed(0)).to(device)
    mask = ops.pack_mask(torch.ones(500, dtype=torch.bool, device=device))
    ops.masked_topk_(weight, mask, 200)
    pruned = weight.clone()
    weight.add_(1.0)
    ops.apply_mask_(weight, mask)
    assert torch.equal(weight, torch.where(pruned != 0, pruned + 1, 0))


def test_numpy_arrays_without_torch():
    core = pytest.importorskip("layercollapse_core")
    weights = [np.arange(1, 20, dtype=np.float32), np.ones((4, 5), np.float16).T]
    keep = [np.arange(19) % 3 == 0, np.arange(20) % 2 == 0]
    assert core.apply_mask_(weights, [np.packbits(bits, bitorder="little") for bits in keep]) is None
    np.testing.assert_array_equal(weights[0], np.where(keep[0], np.arange(1, 20), 0))
    np.testing.assert_array_equal(weights[1], keep[1].reshape(5, 4))
    with pytest.raises(LayerCollapseError, match=r"masks\[0\]: expected a contiguous uint8 array of shape \(3,\)"):
        core.apply_mask_(weights[:1], [np.zeros(2, np.uint8)])


# --- the machine ------------------------------------------------------------------------------------------


READ_ONLY = """
import sys, warnings
import numpy as np, torch
from layercollapse import ops
warnings.simplefilter("ignore")  # torch's, that it can write what is mapped for reading
weight = torch.from_numpy(np.memmap(sys.argv[1], np.float32, mode="r"))
mask = ops.pack_mask(torch.arange(70_000) % 3 != 0)
with ops.use_backend("cpu"):
    ops.apply_mask_(weight, mask)
"""


@pytest.mark.parametrize("changes", [False, True])
def test_what_does_not_change_is_not_written(changes, tmp_path):
    if not ops.backends()["cpu"].available or sys.platform != "linux":
        pytest.skip("needs the C++ part, and memory that cannot be written")
    path = tmp_path / "weights"
    data = np.where(np.arange(70_000) % 3 == 0, 0, 1).astype(np.float32)
    data[69_999] = changes  # a multiple of 3
    data.tofile(path)
    done = subprocess.run([sys.executable, "-c", READ_ONLY, str(path)], check=False, capture_output=True)
    assert done.returncode == (-signal.SIGSEGV if changes else 0), done.stderr


@on_gpu
def test_nothing_waits_for_the_device(backend):
    device = device_of(backend)
    if device == "cpu":
        pytest.skip("not on the GPU")
    weights = [torch.randn(1000, 100, device=device), torch.randn(64, 8, 3, 3, device=device).bfloat16()]
    masks = [random_mask(weight.numel()).to(device) for weight in weights]
    ops.apply_mask_(weights, masks)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.apply_mask_(weights, masks)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
def test_in_a_cuda_graph(backend):
    device = device_of(backend)
    if device == "cpu":
        pytest.skip("not on the GPU")
    weight, mask = torch.randn(10_000, device=device), random_mask(10_000).to(device)
    other = torch.randn(64, 8, 3, 3, device=device).to(memory_format=torch.channels_last)
    other_mask = random_mask(other.numel()).to(device)
    if backend == "triton":
        with (
            pytest.raises(LayerCollapseError, match="before a CUDA graph captures"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            ops.apply_mask_([weight, other], [mask, other_mask])
        ops.apply_mask_([weight, other], [mask, other_mask])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.apply_mask_([weight, other], [mask, other_mask])
    for seed in range(3):
        weight.normal_(generator=torch.Generator(device).manual_seed(seed))
        other.normal_(generator=torch.Generator(device).manual_seed(seed))
        expected = [tensor.clone() for tensor in (weight, other)]
        graph.replay()
        with ops.use_backend("reference"):
            ops.apply_mask_(expected, [mask, other_mask])
        assert torch.equal(weight, expected[0])
        assert torch.equal(other, expected[1])


# --- the table of csrc/plan -------------------------------------------------------------------------------


def test_the_table_that_the_gpu_kernels_read():
    pytest.importorskip("triton")
    from layercollapse.kernels import apply_mask

    _core = pytest.importorskip("layercollapse_core._core")
    words, rows, tiles = _core.mask_table(
        64,
        [1024, 2048, 2050, 4096, 8192, 16384],
        [1, 2, 3, 4, 5, 6],
        [1, 0, 2, 1, 0, 1],
        [[65], [3, 0], [7], [2, 16, 3, 3], [2, 5], [4, 1, 32]],
        [[1], [0, 1], [1], [144, 1, 48, 16], [1, 2], [32, 7, 1]],
    )
    assert (rows, tiles) == (5, 2 + 1 + 5 + 1 + 2)
    table = [words[apply_mask.ROW_WORDS * row :][: apply_mask.ROW_WORDS] for row in range(rows)]
    assert [row[:4] for row in table] == [
        [1024, 1, 65, 0],
        [2050, 3, 7, 2],  # what has no entries has no row
        [4096, 4, 288, 3],
        [8192, 5, 10, 8],
        [16384, 6, 128, 9],
    ]
    info = [row[4] for row in table]
    assert [entry & 15 for entry in info] == [2, 2, 2, 4, 2]
    assert [entry >> 4 & 1 for entry in info] == [0, 0, 1, 0, 0]  # whether whole vectors are read
    dims = [entry >> apply_mask.DIMS_SHIFT & 255 for entry in info]
    places = [entry >> apply_mask.PLACE_SHIFT for entry in info]
    assert [words[p : p + apply_mask.DIM_WORDS * n] for p, n in zip(places, dims, strict=True)] == [
        [],
        [7, 1, 1],
        [2, 144, 144, 9, 16, 1, 16, 1, 9],
        [5, 2, 1, 2, 1, 5],
        [],
    ]
