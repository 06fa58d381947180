"""`sign_hashes` against the definition in plain Python.

tests/kernels/test_gpu_on_cpu.py runs this file too, with Triton's interpreter and with the CUDA sources compiled for
the CPU.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hashes import SIMULATED, SLOW, M, hash_of, mix, on_gpu, values
from layercollapse import LayerCollapseError, ops
from layercollapse.ops import sign_hashes

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def device_of(backend):
    return "cuda" if backend in ("triton", "cuda") and not SIMULATED else "cpu"


@pytest.fixture(params=[name for name, status in ops.backends().items() if status.available])
def backend(request):
    with ops.use_backend(request.param):
        yield request.param


def check(backend, x, channel_dim=1):
    rows = x.movedim(channel_dim, -1)
    expected = [hash_of(row) for row in (rows.double() > 0)[None].flatten(0, -2).tolist()]
    with ops.use_backend(backend):
        got = sign_hashes(x.to(device_of(backend)), channel_dim=channel_dim)
    assert got.shape == rows.shape[:-1]
    assert got.flatten().tolist() == expected


def test_the_hash_is_this_for_ever():
    x = torch.zeros(4, 65)
    x[1, 0] = x[2, 64] = x[3, 63] = 1.0
    assert sign_hashes(x).tolist() == [hash_of(row) for row in (x > 0).tolist()]
    one = torch.tensor([[1.0], [-1.0]])
    assert [h & M for h in sign_hashes(one).tolist()] == HASHES_OF_ONE_CHANNEL


HASHES_OF_ONE_CHANNEL = [mix(mix(1) + 0x9E3779B97F4A7C15 & M), 0xE220A8397B1DCDAF]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 2, 7, 8, 16, 31, 32, 63, 64, 65, 100, 128, 200, 1000])
def test_numbers_of_channels(backend, channels, dtype):
    rows = 3 if SLOW else 21
    check(backend, values((rows, channels), dtype))
    check(backend, values((2, channels, 3, 3), dtype))


LAYOUTS = {
    # name: (a tensor, its channel dimension)
    "channels last": (lambda d: values((35, 64), d), 1),
    "channels first": (lambda d: values((3, 70, 8, 8), d), 1),
    "channels first, odd": (lambda d: values((2, 67, 7, 7), d), 1),
    "channels_last": (lambda d: values((2, 24, 5, 5), d).to(memory_format=torch.channels_last), 1),
    "tokens": (lambda d: values((3, 9, 64), d), -1),
    "tokens without the first": (lambda d: values((3, 9, 64), d)[:, 1:], -1),
    "part of the channels": (lambda d: values((20, 96), d)[:, 16:80], 1),
    "every second channel": (lambda d: values((6, 140), d)[:, ::2], 1),
    "every second position": (lambda d: values((2, 66, 10), d)[..., ::2], 1),
    "unaligned": (lambda d: values((129,), d)[1:].view(2, 64), 1),
    "channels first, unaligned": (lambda d: values((2 * 65 * 16 + 1,), d)[1:].view(2, 65, 16), 1),
    "expanded rows": (lambda d: values((3, 16), d)[:, :, None].expand(3, 16, 5), 1),
    "expanded channels": (lambda d: values((3, 1, 4), d).expand(3, 70, 4), 1),
    "first dimension": (lambda d: values((66, 5), d), 0),
    "only channels": (lambda d: values((66,), d), 0),
    "seven dimensions": (lambda d: values((2,) * 7, d).permute(6, 3, 0, 5, 2, 1, 4)[..., :1], 2),
    "no row": (lambda d: values((0, 5), d), 1),
    "no channel": (lambda d: values((3, 0, 2), d), 1),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend, layout, dtype):
    make, channel_dim = LAYOUTS[layout]
    check(backend, make(dtype), channel_dim)


def test_float64_runs_on_the_reference():
    x = values((9, 70), torch.float32).double()
    assert torch.equal(sign_hashes(x), sign_hashes(x.float()))
    sign_hashes(x)
    assert ops.last_backend() == "reference"


few = settings(max_examples=6 if SLOW else 40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@few
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.randoms(use_true_random=False), st.sampled_from(DTYPES))
def test_random_views(backend, sizes, random, dtype):
    sizes[random.randrange(len(sizes))] *= random.choice([1, 8, 16])
    x = values(tuple(sizes), dtype, random.randrange(100))
    x = x.permute(random.sample(range(x.dim()), x.dim()))
    x = x[tuple(slice(random.randrange(2), None, random.choice([1, 1, 2])) for _ in x.shape)]
    check(backend, x, random.randrange(x.dim()))


def test_results_do_not_depend_on_threads(threads):
    x = values((64, 100, 14, 14), torch.float32)
    with ops.use_backend("reference"):
        expected = sign_hashes(x)
    assert torch.equal(sign_hashes(x), expected)
    assert torch.equal(sign_hashes(x.movedim(1, -1).contiguous(), channel_dim=-1), expected)


@on_gpu
def test_hashing_waits_for_nothing_and_is_captured(backend):
    if (device := device_of(backend)) == "cpu":
        pytest.skip("not on the GPU")
    x = values((8, 192, 14, 14), torch.bfloat16).to(device)
    sign_hashes(x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sign_hashes(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        hashes = sign_hashes(x)
    for _ in range(2):
        x.neg_()
        graph.replay()
        with ops.use_backend("reference"):
            assert torch.equal(hashes, sign_hashes(x))


# Rows that whole vectors make up, of one stride and not; pairs of rows; single rows; several blocks for one row.
LOOPS = [((40, 192), 1), ((3, 9, 72), -1), ((2, 200, 6), 1), ((2, 70, 7), 1), ((5, 2000), 1), ((1, 700, 4), 1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "channel_dim"), LOOPS)
def test_the_loops_of_a_gpu(backend, shape, channel_dim, dtype):
    x = values(shape, dtype)
    check(backend, x[:, 1:] if channel_dim == -1 else x, channel_dim)


def test_instruction_sets(isa):
    if not ops.backends()["cpu"].available:
        pytest.skip("the C++ part is not built")
    for dtype in DTYPES:
        for channels in (3, 64, 130):
            check("cpu", values((40, channels), dtype))
            check("cpu", values((2, channels, 130), dtype))
        check("cpu", values((1, 66, 5000), dtype))  # more positions than are read at once


def test_numpy_arrays_without_torch():
    core = pytest.importorskip("layercollapse_core")
    x = values((3, 70, 5), torch.float32)
    for array, dim in ((x.numpy(), 1), (x.numpy(), -1), (x.numpy()[:, ::-1], 1), (x.half().numpy(), 0)):
        expected = sign_hashes(torch.from_numpy(array.copy()), channel_dim=dim)
        assert core.sign_hashes(array, channel_dim=dim).tolist() == expected.tolist()
    with pytest.raises(LayerCollapseError, match="channel_dim: expected a dimension of x, which has 3, got 3"):
        core.sign_hashes(x.numpy(), channel_dim=3)
