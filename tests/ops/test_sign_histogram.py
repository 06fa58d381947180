"""`sign_histogram` against hand-computed counts and the reference: exact, for every type, layout and thread count."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layercollapse import ops

pytestmark = pytest.mark.skipif(not ops.backends()["cpu"].available, reason="the C++ part is not built")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INT_OF = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
INF, NAN = float("inf"), float("nan")
# Every class of bit pattern; the subnormals survive a conversion to float16 as subnormals or zeros, both fine.
VALUES = [0.0, -0.0, 1.0, -1.0, 6.0, 5.99, 6.01, -6.0, 1e-7, -1e-7, 1e-40, -1e-40, INF, -INF, NAN, -NAN, 65504.0]

HAND = [
    # x, channel_dim, upper, counts
    ([[-1.0, 0.0], [2.0, NAN]], 1, None, [[1, 0, 1, 0], [0, 1, 0, 1]]),
    ([[-0.0, 6.0, 5.0, INF, -INF, -NAN]], 0, 6.0, [[1, 1, 3, 1, 2]]),
    ([[[1.0, -1.0], [0.0, 7.0]], [[2.0, -3.0], [8.0, NAN]]], -1, 6.0, [[0, 1, 3, 0, 1], [2, 0, 1, 1, 1]]),
    ([3.0], 0, None, [[0, 0, 1, 0]]),
    ([], 0, None, []),
]


def agree(x, channel_dim, upper=None):
    with ops.use_backend("reference"):
        expected = ops.sign_histogram(x, channel_dim=channel_dim, upper=upper)
    with ops.use_backend("cpu"):
        got = ops.sign_histogram(x, channel_dim=channel_dim, upper=upper)
    assert torch.equal(got, expected), (got - expected).nonzero()


def mixed(shape, dtype, seed=0):
    """Values of both signs with some of every special class."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 4
    index = torch.randint(len(VALUES), x.shape, generator=generator)
    special = torch.rand(x.shape, generator=generator) < 0.1
    return torch.where(special, torch.tensor(VALUES)[index], x).to(dtype)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize(("x", "channel_dim", "upper", "counts"), HAND)
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_counts_made_by_hand(x, channel_dim, upper, counts, dtype, backend):
    with ops.use_backend(backend):
        got = ops.sign_histogram(torch.tensor(x, dtype=dtype), channel_dim=channel_dim, upper=upper)
    assert got.dtype == torch.int64
    assert got.tolist() == counts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("upper", [6.0, 0.3, 1e-42, 65520.0, 1e39, INF])
def test_all_65536_patterns_of_16_bits(dtype, upper, isa):
    x = torch.arange(-32768, 32768, dtype=torch.int16).view(dtype)
    agree(x, 0, upper)  # one per channel: the rows path
    agree(x[:, None].expand(-1, 3).contiguous().flatten()[None], 0, upper)  # all in one: the runs path


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(("upper", "above"), [(1e-45, 3), (1e-40, 2), (2.0**-126, 1)])
def test_subnormal_bounds_where_subnormals_are_flushed(backend, upper, above):
    bits = torch.tensor([0, 1, 71362, 0x00800000, 71362 - 2**31], dtype=torch.int32)  # 71362: 1e-40
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush them")
    try:
        with ops.use_backend(backend):
            got = ops.sign_histogram(bits.view(torch.float32)[:, None], upper=upper)
    finally:
        torch.set_flush_denormal(False)
    assert got.tolist() == [[1, 1, 3, 0, above]]


SHAPES = [
    ((64, 256, 5, 7), 1),  # short runs: images as rows
    ((3, 37, 199), 1),  # odd runs, fewer than rows are worth
    ((4, 3, 17, 300), 1),  # long runs, few channels
    ((2, 70, 33, 41), 1),
    ((1, 1, 100_003), 1),  # one channel, split by values
    ((2, 1, 50, 400), 1),
    ((40_000, 3), 1),  # narrow rows, joined, with a short last row
    ((1237, 199), 1),
    ((9, 100_000), 1),  # wide rows, split by columns
    ((2, 100_000, 2), 1),
    ((13, 11, 768), -1),  # (N, T, C)
    ((70_000, 9), 1),  # more rows than a 16-bit counter holds
    ((40_000,), 0),
    ((5, 0, 3), 1),
    ((0, 5), 1),
    ((5, 4, 0), 1),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "channel_dim"), SHAPES)
def test_shapes(shape, channel_dim, dtype, threads, isa):
    x = mixed(shape, dtype)
    agree(x, channel_dim, 6.0)
    agree(torch.nan_to_num(x), channel_dim)


VIEWS = {
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "cropped": lambda x: x[:, :, 1:-1, 2:],
    "every second column": lambda x: x[..., ::2],
    "every second channel": lambda x: x.permute(0, 2, 3, 1).contiguous()[..., ::2].permute(0, 3, 1, 2),
    "transposed": lambda x: x.permute(3, 1, 2, 0),
    "batch inside": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "expanded batch": lambda x: x[:1].expand(6, -1, -1, -1),
    "expanded channels": lambda x: x[:, :1].expand(-1, 9, -1, -1),
    "expanded columns": lambda x: x[..., :1].expand(-1, -1, -1, 5),
    "one of everything": lambda x: x[:1, :1, :1, :1],
    "offset": lambda x: x.flatten()[1:-1][: 4 * 30 * 9].view(4, 30, 9, 1),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("view", VIEWS)
def test_views_without_a_copy(view, dtype, threads):
    x = VIEWS[view](mixed((8, 40, 21, 23), dtype))
    for channel_dim in range(x.dim()):
        agree(x, channel_dim, 6.0)


def test_accumulates_and_adds_up():
    x = mixed((6, 50, 31), torch.float32)
    out = ops.sign_histogram(x)
    assert ops.sign_histogram(x, out=out) is out
    parts = sum(ops.sign_histogram(part) for part in (x[:1], x[1:4], x[4:], x))
    assert torch.equal(out, parts)


def test_x_with_a_gradient_or_a_lazy_negative():
    x = mixed((6, 50), torch.float32).requires_grad_()
    assert torch.equal(ops.sign_histogram(x), ops.sign_histogram(x.detach()))
    negative = torch.view_as_complex(torch.tensor([[1.0, 2.0], [3.0, -4.0]])).conj().imag
    assert negative.is_neg()
    assert ops.sign_histogram(negative, channel_dim=0).tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]


@st.composite
def layouts(draw):
    """A tensor of any type, with dimensions permuted, sliced and expanded, and a channel dimension of it."""
    dims = draw(st.integers(1, 4))
    sizes = st.sampled_from([1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 127, 130, 257])
    shape = draw(st.lists(sizes, min_size=dims, max_size=dims))
    while np.prod(shape) > 60_000:
        shape[shape.index(max(shape))] = 5
    kind = draw(st.sampled_from(["mixed", "zeros", "nan", "positive", "negative"]))
    dtype = draw(st.sampled_from(DTYPES))
    x = mixed(shape, dtype, draw(st.integers(0, 2**31)))
    if kind == "zeros":
        x = torch.zeros(shape, dtype=dtype)
    elif kind == "nan":
        x = torch.full(shape, NAN, dtype=dtype)
    elif kind != "mixed":
        x = x.abs() if kind == "positive" else -x.abs()
    order = draw(st.permutations(range(dims)))
    x = x.permute(order).contiguous().permute([order.index(d) for d in range(dims)])
    x = x[tuple(slice(draw(st.sampled_from([None, 1])), None, draw(st.sampled_from([1, 1, 2]))) for _ in range(dims))]
    if draw(st.booleans()):
        x = x.unsqueeze(0).expand(draw(st.integers(1, 3)), *x.shape).movedim(0, draw(st.integers(0, dims)))
    return x, draw(st.integers(0, x.dim() - 1))


oracle = given(
    case=layouts(),
    upper=st.sampled_from([None, 6.0, 0.3, 1e-40, 65504.0]),
    count=st.sampled_from([1, 2, 7]),
    isa_name=st.sampled_from(["auto", "portable"]),
)


@settings(settings.get_profile("ops"), max_examples=150)
@oracle
def test_any_layout_agrees_with_the_reference(core, case, upper, count, isa_name):
    with core(count, isa_name):
        agree(*case, upper)


@pytest.mark.long
@settings(settings.get_profile("ops"), max_examples=500)
@oracle
def test_any_layout_agrees_with_the_reference_more(core, case, upper, count, isa_name):
    with core(count, isa_name):
        agree(*case, upper)


@pytest.mark.nightly
@settings(settings.get_profile("nightly"))
@oracle
def test_any_layout_agrees_with_the_reference_many(core, case, upper, count, isa_name):
    with core(count, isa_name):
        agree(*case, upper)


@pytest.mark.slow
def test_more_than_2_to_the_31_values():
    x = torch.ones(2**31 + 9, dtype=torch.bfloat16)
    x[-5:] = torch.tensor([0.0, -1.0, -0.0, NAN, INF])
    assert ops.sign_histogram(x[:, None], channel_dim=1).tolist() == [[1, 2, 2**31 + 5, 1]]


# --- NumPy, without torch ---------------------------------------------------------------------------------


def test_numpy_without_torch():
    script = """if True:
        import sys, numpy as np, layercollapse_core as core
        x = np.array([[-1, 0, 2], [np.nan, -0.0, 7]], dtype=np.float32)
        assert core.sign_histogram(x, upper=6.0).tolist() == [[1, 0, 0, 1, 0], [0, 2, 0, 0, 0], [0, 0, 2, 0, 1]]
        back = core.sign_histogram(x[::-1, ::-1], upper=6.0)
        assert back.tolist() == [[0, 0, 2, 0, 1], [0, 2, 0, 0, 0], [1, 0, 0, 1, 0]]
        w, m = np.float16([3, -1, 0.5, -2]), np.packbits([1, 1, 0, 1], bitorder="little")
        assert core.masked_topk_([w], [m], [1]).tolist() == [1] and w.tolist() == [3, 0, 0, -2] and m[0] == 0b1001
        assert 'torch' not in sys.modules
    """
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("shape", [(5, 7, 9), (40, 33), (70_000,)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_numpy_agrees_with_torch(shape, dtype):
    import layercollapse_core as core

    x = mixed(shape, torch.float32).numpy().astype(dtype)
    for view in (x, x[::-1], x[..., ::-2], x.T):
        expected = ops.sign_histogram(torch.from_numpy(np.ascontiguousarray(view)), channel_dim=0, upper=6.0)
        assert core.sign_histogram(view, channel_dim=0, upper=6.0).tolist() == expected.tolist()
