"""Triton and CUDA kernels against hand-made tables and the reference, bit for bit.

On a GPU these tests run there. Without one, test_gpu_on_cpu.py runs this file in a process of its own, with Triton's
interpreter and with the CUDA sources compiled for the CPU.
"""

import importlib.util
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkout import ROOT
from layercollapse import LayerCollapseError, ops
from layercollapse.kernels import cuda, race, topk_plan, triton_backend
from layercollapse.ops import repeats

BACKENDS = [name for name in ("triton", "cuda") if ops.backends()[name].available]
SLOW = triton_backend.interpreted()  # each program takes milliseconds: fewer cases, not other ones
TYPES = [torch.float32, torch.bfloat16, torch.float16]
DTYPES = [torch.float32, torch.float16] if SLOW else TYPES
INF, NAN = float("inf"), float("nan")
pytestmark = pytest.mark.skipif(not BACKENDS, reason="no GPU; test_gpu_on_cpu.py runs this file without one")
SIMULATED = triton_backend.interpreted() or cuda.emulated()
on_gpu = pytest.mark.skipif(SIMULATED or not torch.cuda.is_available(), reason="needs a GPU")
DEVICE = "cpu" if SIMULATED else "cuda"
VALUES = [0.0, -0.0, 1.0, -1.0, 6.0, 5.99, -6.0, 1e-7, -1e-40, 1e-40, INF, -INF, NAN, -NAN, 65504.0]
few = settings(max_examples=4 if SLOW else 12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def table(stem):
    """The table made by hand in another test file: the same for every backend."""
    spec = importlib.util.spec_from_file_location(stem, ROOT / "tests" / "ops" / f"{stem}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.HAND


@contextmanager
def sign_limits(backend, **limits):
    """The backend with other limits of csrc/plan/sign_plan.h, which it yields."""
    from layercollapse_core import _core

    if backend == "triton" and SLOW:
        limits = {"block": 32, "unroll": 2, **limits}
    lowered, usual = _core.SignLimits(**{"long_run": 256, **limits}), _core.SignLimits()
    if backend == "cuda":
        cuda.library().lc_sign_limits(lowered.long_run, lowered.largest)
        try:
            yield lowered
        finally:
            cuda.library().lc_sign_limits(usual.long_run, usual.largest)
    else:
        from layercollapse.kernels import sign_histogram

        with mock.patch.object(sign_histogram, "LIMITS", lowered):
            yield lowered


def sign_parts(x, channel_dim, limits):
    """Names of the loops that read x, and how many parts each has."""
    from layercollapse_core import _core

    plan = _core.sign_plan(x.shape, x.stride(), channel_dim % x.dim(), x.element_size(), x.data_ptr(), limits)
    return [type(part).__name__ for part in plan[0]]


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """Each backend, with the constants of a large problem shrunk so that small tensors take every path."""
    monkeypatch.setattr(topk_plan, "SHORTEST", 64 if request.param == "triton" else 4096)
    topk_plan._plans.clear()
    repeats.clear()
    if request.param == "triton" and triton_backend.interpreted():
        from layercollapse.kernels import masked_topk

        monkeypatch.setattr(masked_topk, "SAMPLE", 64)
        for name in ("TILE", "TILE_STRIDED"):
            monkeypatch.setattr(masked_topk, name, 8)
    with ops.use_backend(request.param), sign_limits(request.param):
        yield request.param


def by_reference(call):
    with ops.use_backend("reference"):
        return call()


def signs_agree(x, channel_dim, upper=None):
    def count():
        out = torch.full((x.shape[channel_dim], 4 if upper is None else 5), 7, device=x.device)
        return ops.sign_histogram(x, channel_dim=channel_dim, upper=upper, out=out)

    assert torch.equal(count(), by_reference(count))


def mixed(shape, dtype, seed=0):
    """Values of both signs with every special class among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 4
    index = torch.randint(len(VALUES), x.shape, generator=generator)
    special = torch.rand(x.shape, generator=generator) < 0.2
    return torch.where(special, torch.tensor(VALUES)[index], x).to(dtype).to(DEVICE)


# --- sign_histogram ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("x", "channel_dim", "upper", "counts"), table("test_sign_histogram"))
def test_counts_made_by_hand(backend, x, channel_dim, upper, counts, dtype):
    got = ops.sign_histogram(torch.tensor(x, dtype=dtype, device=DEVICE), channel_dim=channel_dim, upper=upper)
    assert got.tolist() == counts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("upper", [6.0] if SLOW else [None, 6.0, 1e-42, 65520.0, 1e39])
def test_all_patterns_of_16_bits(backend, dtype, upper):
    x = torch.arange(-32768, 32768, 16 if SLOW else 1, dtype=torch.int32, device=DEVICE).to(torch.int16).view(dtype)
    signs_agree(x.view(1, 1, -1), 1, upper)  # one run
    signs_agree(x.view(-1, 64), 1, upper)  # columns


LAYOUTS = {
    # name: (a tensor, its channel dimension, the loops that read it)
    "channels last": (lambda d: mixed((35, 64), d), 1, ["Columns"]),
    "few channels": (lambda d: mixed((131, 3), d), 1, ["Columns", "Strided"]),
    "channels first, short runs": (lambda d: mixed((4, 16, 7, 7), d), 1, ["Columns"]),
    "odd runs": (lambda d: mixed((9, 5, 3, 7), d), 1, ["Columns", "Strided"]),
    "channels first, long runs": (lambda d: mixed((3, 2, 16, 16), d), 1, ["Runs"]),
    "one channel": (lambda d: mixed((1, 4096), d), 0, ["Runs"]),
    "tokens without the first": (lambda d: mixed((3, 9, 64), d)[:, 1:], -1, ["Columns"]),
    "channels_last": (lambda d: mixed((2, 8, 5, 5), d).to(memory_format=torch.channels_last), 1, ["Columns"]),
    "every second": (lambda d: mixed((6, 9, 10), d)[..., ::2], 1, ["Strided"]),
    "unaligned": (lambda d: mixed((129,), d)[1:].view(8, 16), 1, ["Strided"]),
    "expanded": (lambda d: mixed((3, 16), d)[:, :, None].expand(3, 16, 5), 1, ["Columns"]),
    "seven dimensions": (lambda d: mixed((2,) * 7, d).permute(6, 3, 0, 5, 2, 1, 4)[..., :1], 2, ["Strided"]),
    "no sample": (lambda d: mixed((0, 5), d), 1, None),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(backend, name, dtype):
    make, channel_dim, loops = LAYOUTS[name]
    x = make(dtype)
    with sign_limits(backend) as limits:
        assert loops is None or sign_parts(x, channel_dim, limits) == loops
        signs_agree(x, channel_dim, 6.0)
        if not SLOW:
            signs_agree(x.nan_to_num(1.0) if x.is_contiguous() else x, channel_dim)


@pytest.mark.parametrize(("shape", "dim"), [((66, 64), 1), ((530, 3), 1), ((1, 2, 160), 1), ((9, 9, 64), -1)], ids=str)
def test_what_is_cut_into_parts_is_counted_once(backend, shape, dim):
    x = mixed(shape, torch.bfloat16)
    x = x[:, 1:] if dim == -1 else x  # rows in groups
    with sign_limits(backend, largest=64) as limits:
        assert len([loop for loop in sign_parts(x, dim, limits) if loop != "Strided"]) > 1
        signs_agree(x, dim, 6.0)


RUNS = [1, 2, 3, 5, 7, 8, 9, 12, 15, 16, 17, 31, 49, 63, 64, 65, 100]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("run", RUNS[::4] if SLOW else RUNS)
def test_short_runs_of_any_length(backend, run, dtype):
    # More than a strip of columns, rows that do and do not end on a vector, channels that change within one.
    for channels in (24, 320 // run + 1) if SLOW else (8, 24, 320 // run + 1, 2600 // run + 1):
        x = mixed((5, channels, run), dtype, run)
        signs_agree(x, 1, 6.0)
        signs_agree(x.nan_to_num(), 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_rows_than_a_packed_counter_takes(backend, dtype):
    if SLOW:
        pytest.skip("too many rows")
    x = torch.ones(1 << 19, 8, dtype=dtype, device=DEVICE)  # six blocks of the emulation share them
    x[:, 1], x[:, 2], x[:, 3], x[:, 4] = -1, NAN, 0, -NAN
    signs_agree(x, 1, 0.5)
    signs_agree(x.view(-1, 4, 2), 1, 0.5)


@few
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
    st.sampled_from(DTYPES),
    st.sampled_from([None, 6.0]),
)
def test_random_views(backend, sizes, random, dtype, upper):
    x = mixed(tuple(sizes), dtype, random.randrange(100))
    x = x.permute(random.sample(range(x.dim()), x.dim()))
    x = x[tuple(slice(random.randrange(2), None, random.choice([1, 1, 2])) for _ in x.shape)]
    signs_agree(x, random.randrange(x.dim()), upper)


# --- masked_topk_ -----------------------------------------------------------------------------------------


def topk_agrees(weights, masks, k, scope="layer"):
    def run():
        copies = [clone(weight) for weight in weights]
        bits = [mask.clone() for mask in masks]
        return ops.masked_topk_(copies, bits, k, scope=scope), copies, bits

    (got, weights_got, masks_got), (expected, weights_expected, masks_expected) = run(), by_reference(run)
    assert got.tolist() == expected.tolist()
    for a, b in zip((*weights_got, *masks_got), (*weights_expected, *masks_expected), strict=True):
        assert a.stride() == b.stride()
        assert torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def clone(weight):
    """A copy of the same strides and the same alignment."""
    if not weight.numel():
        return weight.clone()
    span = sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True)) + 1
    memory = torch.empty(weight.storage_offset() + span, dtype=weight.dtype, device=weight.device)
    return memory.as_strided(weight.shape, weight.stride(), weight.storage_offset()).copy_(weight)


def random_mask(weight, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return ops.pack_mask((torch.rand(weight.shape, generator=generator) < density).to(DEVICE))


def kept_in(weight, mask):
    return int(ops.unpack_mask(mask, weight.shape).sum())


def size_of_more_than_a_sample():
    """Entries that are more than a sample."""
    return 605 if SLOW else 40_005


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("weights", "keep", "k", "scope", "after", "kept", "thresholds"), table("test_masked_topk"))
def test_tables_made_by_hand(backend, weights, keep, k, scope, after, kept, thresholds, dtype):
    weights = [torch.tensor(weight, dtype=dtype, device=DEVICE) for weight in weights]
    masks = [ops.pack_mask(torch.tensor(bits, dtype=torch.bool, device=DEVICE)) for bits in keep]
    assert ops.masked_topk_(weights, masks, k, scope=scope).tolist() == thresholds
    assert [weight.tolist() for weight in weights] == after
    assert not any(torch.signbit(weight[weight == 0]).any() for weight in weights)
    assert [ops.unpack_mask(mask, (len(bits),)).int().tolist() for mask, bits in zip(masks, kept, strict=True)] == kept


DATA = {
    "normal": lambda n, g: torch.randn(n, generator=g),
    "equal": lambda n, g: torch.full((n,), -0.5),
    "two values": lambda n, g: torch.where(torch.rand(n, generator=g) < 0.5, 1.0, -2.0),
    "few values": lambda n, g: torch.randint(-3, 4, (n,), generator=g).float(),
    "sorted": lambda n, g: torch.linspace(0, 1, n),
    "zeros": lambda n, g: torch.where(torch.rand(n, generator=g) < 0.5, 0.0, -0.0),
    "subnormal": lambda n, g: torch.randn(n, generator=g) * 1e-40,
    "infinite": lambda n, g: torch.where(torch.rand(n, generator=g) < 0.5, INF, -1.0),
    "one outlier": lambda n, g: torch.cat([torch.full((n - 1,), 1e-3), torch.tensor([1e3])]),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16] if SLOW else [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("data", DATA)
def test_adversarial_data(backend, data, dtype):
    weight = DATA[data](size_of_more_than_a_sample(), torch.Generator().manual_seed(0)).to(dtype).to(DEVICE)
    mask = random_mask(weight, 0.6)
    kept = kept_in(weight, mask)
    for k in (kept // 2,) if SLOW else (0, 1, kept // 2, kept):
        topk_agrees([weight], [mask], [k])


def drawn_from(segments, slot, sample):
    """The places of a group's sample: Murmur3's last steps, as in the kernels."""

    def random(salt):
        h = (torch.arange(sample) + salt) * 0x9E3779B9 & 0xFFFFFFFF
        h = (h ^ (h >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
        h = (h ^ (h >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
        return h ^ (h >> 16)

    return (random(1) * segments >> 32) * slot + (random(65537) * slot >> 32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.2, 0.97])
def test_a_bracket_that_missed_is_found_out(backend, dtype, share):
    # What is drawn says nothing of the rest: it is above all of it, and then, below.
    size = size_of_more_than_a_sample()
    slot, sample = (64, 64) if SLOW else (8192, size // 4 // 1024 * 1024)
    weight = torch.rand(size, generator=torch.Generator().manual_seed(1)) + 1
    places = drawn_from(-(-size // slot), slot, sample)
    drawn = torch.zeros(size, dtype=torch.bool).index_fill_(0, places[places < size], True)
    weight = torch.where(drawn, weight * (8 if share < 0.5 else 0.125), weight).to(dtype).to(DEVICE)
    topk_agrees([weight], [random_mask(weight, 1.0)], [int(share * size)])


@pytest.mark.parametrize("where", ["one segment", "one warp", "all"])
def test_lists_that_overflow_are_read_again(backend, where):
    # Evenly drawn, the bracket holds few keys; in a part of the tensor it holds all.
    size = size_of_more_than_a_sample() * (1 if SLOW else 4)
    generator = torch.Generator().manual_seed(2)
    weight = torch.rand(size, generator=generator)
    dense = torch.zeros(size, dtype=torch.bool)
    if where == "one segment":
        dense[4096:8192] = True
    elif where == "one warp":
        dense.view(-1)[torch.arange(size) // 256 % 8 == 3] = True
    else:
        dense[:] = True
    weight = torch.where(dense, 0.5 + weight * 1e-5, weight).to(DEVICE)
    topk_agrees([weight], [random_mask(weight, 0.9)], [int(0.45 * size)])


def a_model(dtypes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = []
    for index, shape in enumerate([(8, 3, 3, 3), (16, 8, 3, 3), (10, 33), (7,), (1, 1), (0, 4), (130,)]):
        weight = (torch.randn(shape, generator=generator) / (index + 1)).to(dtypes[index % len(dtypes)]).to(DEVICE)
        if index == 1:
            weight = weight.to(memory_format=torch.channels_last)
        weights.append(weight.t().contiguous().t() if index == 2 else weight[1:] if index == 6 else weight)
    return weights


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("dtypes", [TYPES] if SLOW else [TYPES[:1], TYPES[1:2], TYPES[2:], TYPES])
def test_many_tensors(backend, scope, dtypes):
    weights = a_model(dtypes)
    masks = [random_mask(weight, 0.8, index) for index, weight in enumerate(weights)]
    kept = [kept_in(weight, mask) for weight, mask in zip(weights, masks, strict=True)]
    topk_agrees(weights, masks, [count // 2 for count in kept] if scope == "layer" else [sum(kept) // 2], scope)


def test_ties_go_in_order_across_segments_and_tensors(backend):
    size = size_of_more_than_a_sample() // 3
    weights = [torch.full((size,), 2.0, device=DEVICE) for _ in range(3)]
    masks = [random_mask(weight, 1.0) for weight in weights]
    ops.masked_topk_(weights, masks, size + 137, scope="global")
    assert torch.cat(weights).nonzero().flatten().tolist() == list(range(size + 137, 3 * size))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("strided", [False, True])
def test_ties_run_out_within_one_long_segment(backend, dtype, strided):
    # Several blocks of the apply pass share a segment of 8,192 entries and more, and each must know of those before.
    size = 640 if SLOW else 5 * 8192 + 40
    values = torch.randint(0, 2, (size,), generator=torch.Generator().manual_seed(0)).to(dtype).sub(2)
    weight = (values.view(-1, 2).t().contiguous().t() if strided else values).to(DEVICE)
    mask = random_mask(weight, 0.7)
    topk_agrees([weight], [mask], [int(0.61 * kept_in(weight, mask))], "global")


@few
@given(st.randoms(use_true_random=False), st.sampled_from(["layer", "global"]), st.booleans())
def test_random_problems(backend, random, scope, one_type):
    weights = []
    for _ in range(random.randrange(1, 4)):
        dtype = TYPES[1] if one_type else random.choice(TYPES)
        size = random.choice([1, 7, 8, 65, 200])
        generator = torch.Generator().manual_seed(random.randrange(100))
        weights.append(DATA[random.choice(list(DATA))](size, generator).to(dtype).to(DEVICE))
    masks = [random_mask(weight, random.choice([1.0, 0.5]), random.randrange(9)) for weight in weights]
    kept = [kept_in(weight, mask) for weight, mask in zip(weights, masks, strict=True)]
    limits = kept if scope == "layer" else [sum(kept)]
    topk_agrees(weights, masks, [random.choice([0, limit, random.randint(0, limit)]) for limit in limits], scope)


def test_a_weight_that_lost_its_last_bits_and_one_with_a_nan_in_its_tail(backend):
    weight, mask = torch.ones(13, device=DEVICE), random_mask(torch.ones(13), 1.0)
    topk_agrees([weight], [mask], [13])
    weight[12] = NAN
    with pytest.raises(LayerCollapseError, match=r"weights\[0\]: expected numbers, got NaN"):
        ops.masked_topk_(weight, mask, 1)
    assert weight[:12].tolist() == [1] * 12
    assert mask.tolist() == [255, 31]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_anywhere_is_found(backend, dtype):
    size = size_of_more_than_a_sample()
    source = torch.randn(size, generator=torch.Generator().manual_seed(3)).to(dtype).to(DEVICE)
    mask = random_mask(source, 0.5)
    for place in range(0, size, size // 3 if SLOW else 1777):
        for k in (0, 3, size // 4):
            weight, bits = source.clone(), mask.clone()
            weight[place] = -NAN
            with pytest.raises(LayerCollapseError, match=r"weights\[0\]: expected numbers, got NaN"):
                ops.masked_topk_(weight, bits, k)
            assert torch.equal(bits, mask)
            assert torch.equal(weight.nan_to_num(9), torch.where(weight.isnan(), 9, source))


# --- the choice between the two ---------------------------------------------------------------------------


def test_the_faster_one_is_measured_once(monkeypatch):
    class Runner:
        def __init__(self, name):
            self.name = name

    slow, fast = Runner("slow"), Runner("fast")
    times = {"slow": [2.0], "fast": [1.0]}
    monkeypatch.setattr(race, "_winners", {})
    monkeypatch.setattr(race, "_call", lambda runner, *_: runner)
    monkeypatch.setattr(race, "_milliseconds", lambda runner: times[runner.name].pop())
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    small, large = torch.ones(8), torch.ones(race.SMALL // 4)
    assert race.faster([slow, fast], "masked_topk_", [small]) is slow
    assert race.faster([slow, fast], "masked_topk_", [large]) is fast
    assert race.faster([slow, fast], "masked_topk_", [large, large]) is fast


# --- what only a GPU can show -----------------------------------------------------------------------------


@contextmanager
def waiting_is_an_error():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
def test_counting_never_waits_for_the_device(backend):
    x = mixed((64, 64), torch.bfloat16)
    out = torch.zeros(64, 4, dtype=torch.int64, device=DEVICE)
    expected = 2 * by_reference(lambda: ops.sign_histogram(x))
    with waiting_is_an_error():
        ops.sign_histogram(x, out=out)
        out += ops.sign_histogram(x)
    assert torch.equal(out, expected)


@on_gpu
def test_selecting_waits_once_after_the_last_launch(backend):
    source = mixed((64, 64), torch.bfloat16).nan_to_num()
    weight, mask, expected, bits = source.clone(), random_mask(source, 1.0), source.clone(), random_mask(source, 1.0)
    ops.masked_topk_(weight, mask, 300)  # copies the tables of this call to the device
    by_reference(lambda: ops.masked_topk_(expected, bits, 300))
    weight.copy_(source)
    mask.fill_(255)
    with waiting_is_an_error(), pytest.raises(RuntimeError, match="synchroniz"):
        ops.masked_topk_(weight, mask, 300)
    # All was launched by then: it is the reading of the errors that waits.
    assert torch.equal(weight, expected)
    assert torch.equal(mask, bits)


@on_gpu
def test_tables_that_another_stream_still_copies(backend):
    weight = torch.randn(100_000, device=DEVICE)
    mask = random_mask(weight, 1.0)
    counts = by_reference(lambda: ops.topk_count(weight, mask))
    before = weight.clone()
    # Compiled and loaded, for other tensors, before the streams run side by side.
    ops.topk_count(weight.clone(), mask)
    ops.apply_mask_(weight.clone(), mask)
    topk_plan._plans.clear()
    repeats.clear()
    first, second = torch.cuda.Stream(DEVICE), torch.cuda.Stream(DEVICE)
    torch.cuda.synchronize()
    with torch.cuda.stream(first):
        torch.cuda._sleep(200_000_000)  # about 0.1 s, and the copies come behind it
        ops.topk_count(weight, mask)
        ops.apply_mask_(weight, mask)
    with torch.cuda.stream(second):
        got = ops.topk_count(weight, mask)
        ops.apply_mask_(weight, mask)
    torch.cuda.synchronize()
    assert torch.equal(got, counts)
    assert torch.equal(weight, before)


@on_gpu
def test_in_a_graph_that_was_captured(backend):
    source = torch.randn(100_000, device=DEVICE)
    weight, mask, full = source.clone(), random_mask(source, 1.0), random_mask(source, 1.0)
    with (
        pytest.raises(LayerCollapseError, match="before a CUDA graph captures"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        ops.masked_topk_(weight, mask, 777)
    # Both as they will be captured: Triton compiles and loads a kernel for a layout, which a capture does not allow.
    ops.masked_topk_(weight, mask, 5000)
    ops.sign_histogram(weight.view(100, 1000))
    weight.copy_(source)
    mask.copy_(full)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        thresholds = ops.masked_topk_(weight, mask, 5000)
        counts = ops.sign_histogram(weight.view(100, 1000))
    for seed in range(3):
        data = torch.randn(100_000, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(seed))
        weight.copy_(data)
        mask.copy_(full)
        graph.replay()
        expected, bits = data.clone(), full.clone()
        threshold = by_reference(lambda w=expected, b=bits: ops.masked_topk_(w, b, 5000))
        assert thresholds.tolist() == threshold.tolist()
        assert torch.equal(weight, expected)
        assert torch.equal(mask, bits)
        assert torch.equal(counts, by_reference(lambda w=expected: ops.sign_histogram(w.view(100, 1000))))
    weight.copy_(source)
    weight[5] = NAN
    before = weight.clone()
    graph.replay()
    assert thresholds.isnan().all()
    assert torch.equal(weight.nan_to_num(9.0), before.nan_to_num(9.0))


@on_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_a_device_that_is_not_the_current_one(backend):
    with torch.cuda.device(0):
        x = mixed((64, 64), torch.float32).to("cuda:1")
        assert ops.sign_histogram(x).device == x.device
        signs_agree(x, 1)
        weight = x.nan_to_num()
        topk_agrees([weight], [random_mask(weight, 1.0).to("cuda:1")], [100])


@on_gpu
@pytest.mark.parametrize("shape", [(2**31 + 24,), (2**20, 2056)])
def test_more_than_2_to_the_31(backend, shape):
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB")
    x = torch.ones(shape, dtype=torch.bfloat16, device=DEVICE)
    x[-1] = -1
    counts = ops.sign_histogram(x.view(1, *shape), channel_dim=-1 if len(shape) == 2 else 0).sum(0)
    negative = shape[1] if len(shape) == 2 else 1
    assert counts.tolist() == [negative, 0, x.numel() - negative, 0]
    mask = torch.full((x.numel() // 8,), 255, dtype=torch.uint8, device=DEVICE)
    assert ops.masked_topk_(x, mask, x.numel() - 9).tolist() == [1]
    assert int(x.count_nonzero()) == 9
    assert bool(x.flatten()[-9:].count_nonzero() == 9)
