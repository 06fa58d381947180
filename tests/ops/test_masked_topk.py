"""`masked_topk_` against hand-computed tables and a sort: weights, masks and thresholds bit for bit."""

import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layercollapse import LayerCollapseError, ops

pytestmark = pytest.mark.skipif(not ops.backends()["cpu"].available, reason="the C++ part is not built")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INT_OF = {torch.float64: np.int64, torch.float32: np.int32, torch.bfloat16: np.int16, torch.float16: np.int16}
INF, NAN = float("inf"), float("nan")

HAND = [
    # weights, keep-bits, k, scope, weights after, keep-bits after, thresholds
    ([[3.0, -1, 0.5, -2]], [[1, 1, 0, 1]], 1, "layer", [[3.0, 0, 0, -2]], [[1, 0, 0, 1]], [1]),
    ([[1.0, -1, 1, -1]], [[1, 1, 1, 1]], 2, "layer", [[0.0, 0, 1, -1]], [[0, 0, 1, 1]], [1]),
    ([[-0.0, 0, 5]], [[1, 1, 1]], 1, "layer", [[0.0, 0, 5]], [[0, 1, 1]], [0]),
    ([[7.0, 8]], [[0, 1]], 0, "layer", [[0.0, 8]], [[0, 1]], [0]),
    ([[7.0, 8], [1]], [[1, 1], [1]], [1, 1], "layer", [[0.0, 8], [0]], [[0, 1], [0]], [7, 1]),
    ([[7.0, 2], [1, 2]], [[1, 1], [1, 1]], 2, "global", [[7.0, 0], [0, 2]], [[1, 0], [0, 1]], [2]),
    ([[INF, -INF, 1]], [[1, 1, 1]], 2, "layer", [[0.0, -INF, 0]], [[0, 1, 0]], [INF]),
    ([[]], [[]], 0, "layer", [[]], [[]], [0]),
    ([[2.0]], [[1]], 1, "layer", [[0.0]], [[0]], [2]),
]


def bits_of(weight):
    """The patterns in row-major order, as NumPy integers."""
    return weight.detach().contiguous().view(getattr(torch, INT_OF[weight.dtype].__name__)).numpy().ravel()


def oracle(weights, masks, k, scope):
    """The definition, by a stable sort in NumPy; shares no code with the package."""
    patterns = [bits_of(weight).copy() for weight in weights]
    keep = [
        np.unpackbits(mask.numpy(), bitorder="little", count=p.size) for mask, p in zip(masks, patterns, strict=True)
    ]
    keys = [np.abs(weight.detach().double().contiguous().numpy().ravel()) for weight in weights]
    groups = [[i] for i in range(len(weights))] if scope == "layer" else [range(len(weights))]
    thresholds = []
    for group, count in zip(groups, k, strict=True):
        where = [(i, j) for i in group for j in np.flatnonzero(keep[i])]
        order = np.argsort([keys[i][j] for i, j in where], kind="stable")[:count]
        thresholds.append(max((keys[i][j] for i, j in (where[o] for o in order)), default=0.0))
        for i, j in (where[o] for o in order):
            keep[i][j] = 0
    for pattern, kept in zip(patterns, keep, strict=True):
        pattern[kept == 0] = 0
    return patterns, keep, thresholds


def check(weights, masks, k, scope, expected=None):
    patterns, keep, thresholds = expected or oracle(weights, masks, k, scope)
    padding = [
        mask[-1:].numpy() >> (w.numel() % 8) if w.numel() % 8 else None for mask, w in zip(masks, weights, strict=True)
    ]
    got = ops.masked_topk_(weights, masks, k, scope=scope)
    assert got.tolist() == thresholds
    for weight, mask, pattern, kept, pad in zip(weights, masks, patterns, keep, padding, strict=True):
        np.testing.assert_array_equal(bits_of(weight), pattern)
        np.testing.assert_array_equal(np.unpackbits(mask.numpy(), bitorder="little", count=kept.size), kept)
        assert pad is None or mask[-1:].numpy() >> (weight.numel() % 8) == pad


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize(("weights", "keep", "k", "scope", "after", "kept", "thresholds"), HAND)
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_tables_made_by_hand(backend, weights, keep, k, scope, after, kept, thresholds, dtype):
    weights = [torch.tensor(weight, dtype=dtype) for weight in weights]
    masks = [ops.pack_mask(torch.tensor(bits, dtype=torch.bool)) for bits in keep]
    with ops.use_backend(backend):
        got = ops.masked_topk_(weights, masks, k, scope=scope)
    assert got.tolist() == thresholds
    assert [weight.tolist() for weight in weights] == after
    assert not any(torch.signbit(weight[weight == 0]).any() for weight in weights if 0 in weight)
    for mask, bits in zip(masks, kept, strict=True):
        assert ops.unpack_mask(mask, (len(bits),)).tolist() == [bool(bit) for bit in bits]


# --- large enough for brackets, chunks and threads ---------------------------------------------------------

LARGE = 3 * 65536 + 77  # four chunks, the last of them odd
DATA = {
    "normal": lambda n, g: torch.randn(n, generator=g),
    "equal": lambda n, g: torch.full((n,), -0.5),
    "two values": lambda n, g: torch.where(torch.rand(n, generator=g) < 0.5, 1.0, -2.0),
    "few values": lambda n, g: torch.randint(-3, 4, (n,), generator=g).float(),
    "sorted": lambda n, g: torch.linspace(0, 1, n),
    "reversed": lambda n, g: torch.linspace(1, 0, n),
    "zeros": lambda n, g: torch.where(torch.rand(n, generator=g) < 0.5, 0.0, -0.0),
    "subnormal": lambda n, g: torch.randn(n, generator=g) * 1e-40,
    "infinite": lambda n, g: torch.where(torch.rand(n, generator=g) < 0.5, INF, -INF),
    "one outlier": lambda n, g: torch.cat([torch.full((n - 1,), 1e-3), torch.tensor([1e3])]),
    "blocks": lambda n, g: torch.arange(n).div(997, rounding_mode="floor").remainder(13).float(),
}


def fast_oracle(weights, masks, k, scope):
    """As `oracle`, without Python loops, for large weights."""
    patterns = [bits_of(weight).copy() for weight in weights]
    keep = [
        np.unpackbits(mask.numpy(), bitorder="little", count=p.size) for mask, p in zip(masks, patterns, strict=True)
    ]
    keys = [np.abs(weight.double().contiguous().numpy().ravel()) for weight in weights]
    groups = [[i] for i in range(len(weights))] if scope == "layer" else [list(range(len(weights)))]
    thresholds = []
    for group, count in zip(groups, k, strict=True):
        joined, ranked = np.concatenate([keep[i] for i in group]), np.concatenate([keys[i] for i in group])
        where = np.flatnonzero(joined)
        cleared = where[np.argsort(ranked[where], kind="stable")[:count]]
        joined[cleared] = 0
        thresholds.append(ranked[cleared].max(initial=0.0))
        for i, part in zip(group, np.split(joined, np.cumsum([keep[i].size for i in group])[:-1]), strict=True):
            keep[i] = part
    for pattern, kept in zip(patterns, keep, strict=True):
        pattern[kept == 0] = 0
    return patterns, keep, thresholds


def random_masks(weights, density, generator):
    return [ops.pack_mask(torch.rand(weight.shape, generator=generator) < density) for weight in weights]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("data", DATA)
def test_large_weights(data, dtype, threads):
    generator = torch.Generator().manual_seed(0)
    base = DATA[data](LARGE, generator).to(dtype)
    for density in (1.0, 0.5, 0.01):
        masks = random_masks([base], density, generator)
        kept = int(ops.unpack_mask(masks[0], base.shape).sum())
        for k in {0, 1, kept // 2, kept - 1, kept}:
            weights, copies = [base.clone()], [masks[0].clone()]
            check(weights, copies, [k], "layer", fast_oracle(weights, copies, [k], "layer"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", [[1.0, -2.0], [1e-40, 3.0, 3.0, INF], list(range(8))])
def test_thresholds_at_the_edge_of_heavy_ties(values, dtype, threads):
    # The bracket leaves such magnitudes out: one read more counts the one that k falls on.
    generator = torch.Generator().manual_seed(5)
    base = torch.tensor(values)[torch.randint(len(values), (LARGE,), generator=generator)].to(dtype)
    base[LARGE // 2] = 1.5
    mask = random_masks([base], 0.9, generator)[0]
    kept = base.abs()[ops.unpack_mask(mask, base.shape)]
    edges = [int((kept <= value).sum()) for value in kept.unique()[:3]]
    for k in (edge + offset for edge in edges for offset in (-1, 0, 1) if edge + offset <= kept.numel()):
        weights, masks = [base.clone(), base[:20_000].clone()], [mask.clone(), mask[:2500].clone()]
        wanted = [k, min(k, 9000)]
        check(weights, masks, wanted, "layer", fast_oracle(weights, masks, wanted, "layer"))


@pytest.mark.parametrize("data", DATA)
def test_every_instruction_set(data, isa):
    generator = torch.Generator().manual_seed(1)
    weights = [DATA[data](size, generator).to(dtype) for dtype in DTYPES for size in (1, 63, 65, 12_345, 70_001)]
    masks = random_masks(weights, 0.7, generator)
    total = sum(int(ops.unpack_mask(mask, w.shape).sum()) for mask, w in zip(masks, weights, strict=True))
    check(weights, masks, [total // 3], "global", fast_oracle(weights, masks, [total // 3], "global"))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_model_of_mixed_sizes_types_and_strides(scope, threads):
    generator = torch.Generator().manual_seed(2)
    weights = []
    for index, shape in enumerate(
        [(64, 3, 7, 7), (256, 128, 3, 3), (10, 512), (512,), (1, 1, 1, 1), (90, 40, 5, 5), (0, 4)] * 3
    ):
        weight = (torch.randn(shape, generator=generator) / (index + 1)).to(DTYPES[index % 3])
        if len(shape) == 4 and index % 2:
            weight = weight.to(memory_format=torch.channels_last)
        if len(shape) == 2 and index % 2:
            weight = weight.t().contiguous().t()
        weights.append(weight)
    masks = random_masks(weights, 0.8, generator)
    kept = [int(ops.unpack_mask(mask, w.shape).sum()) for mask, w in zip(masks, weights, strict=True)]
    k = [count // 2 for count in kept] if scope == "layer" else [sum(kept) // 2]
    strides = [weight.stride() for weight in weights]
    check(weights, masks, k, scope, fast_oracle(weights, masks, k, scope))
    assert [weight.stride() for weight in weights] == strides


def test_more_groups_than_the_buffers_hold_are_read_again():
    # All equal but for the bracket's edge: each group alone fits, all together need several rounds.
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randint(1, 4, (90_000,), generator=generator).float() for _ in range(150)]
    masks = random_masks(weights, 1.0, generator)
    k = [int((weight == 1).sum()) for weight in weights]
    check(weights, masks, k, "layer", fast_oracle(weights, masks, k, "layer"))


def test_repeated_steps_until_nothing_is_left():
    weight = torch.randn(5000, generator=torch.Generator().manual_seed(4))
    mask = ops.pack_mask(torch.ones(5000, dtype=torch.bool))
    order = weight.abs().argsort(stable=True)
    left = 5000
    while left:
        step = max(1, left // 2)
        ops.masked_topk_(weight, mask, step)
        left -= step
        assert set(order[5000 - left :].tolist()) == set(ops.unpack_mask(mask, (5000,)).nonzero().flatten().tolist())
    with pytest.raises(LayerCollapseError, match="at most the 0 entries"):
        ops.masked_topk_(weight, mask, 1)


@pytest.mark.parametrize("position", [0, 63, 64, 65_535, 65_536, LARGE - 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_nan_anywhere_changes_nothing(position, dtype, scope, threads):
    weights = [torch.randn(1000).to(dtype), torch.randn(LARGE).to(dtype), torch.randn(200_000)]
    weights[1][position] = -NAN
    masks = [ops.pack_mask(torch.ones_like(weight, dtype=torch.bool)) for weight in weights]
    masks[1].zero_()
    before = [tensor.view(torch.uint8).clone() for tensor in (*weights, *masks)]
    with pytest.raises(LayerCollapseError, match=r"weights\[1\]: expected numbers, got NaN"):
        ops.masked_topk_(weights, masks, [500, 0, 500] if scope == "layer" else 500, scope=scope)
    after = [tensor.view(torch.uint8) for tensor in (*weights, *masks)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# --- properties -------------------------------------------------------------------------------------------

SIZES = [0, 1, 2, 7, 8, 9, 31, 33, 63, 64, 65, 127, 129, 255, 257, 1000, 1023, 1025]
PALETTES = [[0.0, -0.0], [0.5, -0.5], [1.0, -2.0], [0.0, 1e-40, -1e-40, 1e-7], [INF, -INF, 65504.0], list(range(-9, 9))]


@st.composite
def problems(draw):
    """Weights, masks, k and scope: sizes around words, adversarial values, any strides, any density."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weights, masks = [], []
    for _ in range(draw(st.integers(1, 4))):
        size = 70_001 if draw(st.integers(0, 49)) == 0 else draw(st.sampled_from(SIZES))  # rarely two chunks: slow
        palette = draw(st.sampled_from([None, *PALETTES]))
        weight = torch.randn(size, generator=generator)
        if palette:
            weight = torch.tensor(palette)[torch.randint(len(palette), (size,), generator=generator)]
        arrange = draw(st.sampled_from(["random", "sorted", "reversed"]))
        if arrange != "random":
            weight = weight.sort(descending=arrange == "reversed").values
        weight = weight.to(draw(st.sampled_from(DTYPES)))
        layout = draw(st.sampled_from(["dense", "transposed", "every second", "backwards in three"]))
        if layout == "transposed":
            weight = weight[: size // 3 * 3].view(-1, 3).t()
        elif layout == "every second":
            weight = torch.stack([weight, weight], -1)[:, 0]
        elif layout == "backwards in three":
            weight = weight[: size // 6 * 6].view(-1, 2, 3).permute(2, 0, 1)
        density = draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
        mask = ops.pack_mask(torch.rand(weight.shape, generator=generator) < density)
        if weight.numel() % 8 and draw(st.booleans()):
            mask[-1] |= (0xFF << (weight.numel() % 8)) & 0xFF
        weights.append(weight)
        masks.append(mask)
    kept = [int(ops.unpack_mask(mask, weight.shape).sum()) for mask, weight in zip(masks, weights, strict=True)]
    scope = draw(st.sampled_from(["layer", "global"]))
    share = draw(st.sampled_from([0.0, 0.01, 0.5, 0.99, 1.0]))
    k = [int(share * count) for count in (kept if scope == "layer" else [sum(kept)])]
    return weights, masks, k, scope


any_problem = given(
    problem=problems(), isa_name=st.sampled_from(["auto", "portable"]), count=st.sampled_from([1, 2, 7])
)


@settings(settings.get_profile("ops"), max_examples=300)
@any_problem
def test_agrees_with_a_sort(core, problem, isa_name, count):
    with core(count, isa_name):
        check(*problem, fast_oracle(*problem))


@pytest.mark.long
@settings(settings.get_profile("ops"), max_examples=1500)
@any_problem
def test_agrees_with_a_sort_more(core, problem, isa_name, count):
    with core(count, isa_name):
        check(*problem, fast_oracle(*problem))


@pytest.mark.nightly
@settings(settings.get_profile("nightly"))
@any_problem
def test_agrees_with_a_sort_many(core, problem, isa_name, count):
    with core(count, isa_name):
        check(*problem, fast_oracle(*problem))


@settings(settings.get_profile("ops"), max_examples=60)
@given(problem=problems())
def test_the_two_oracles_and_the_reference_agree(problem):
    weights, masks, k, scope = problem
    slow, fast = oracle(weights, masks, k, scope), fast_oracle(weights, masks, k, scope)
    for a, b in zip((*slow[0], *slow[1], slow[2]), (*fast[0], *fast[1], fast[2]), strict=True):
        np.testing.assert_array_equal(a, b)
    with ops.use_backend("reference"):
        check(weights, masks, k, scope, slow)


# --- limits -----------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the peak is Linux's")
@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("values", ["randn(SIZE)", "randint(1, 3, (SIZE,)).float()", "randn(SIZE).bfloat16()"])
def test_extra_memory_is_small(values, count):
    # A process of its own: the peak of this one was set by other tests.
    size = 30_000_000
    script = f"""if True:
        import resource, torch
        from layercollapse import ops
        torch.set_num_threads({count})
        SIZE = {size}
        w, m = torch.{values}, torch.full((SIZE // 8,), 255, dtype=torch.uint8)
        ops.masked_topk_(torch.randn(70_000), torch.full((8750,), 255, dtype=torch.uint8), 1)
        open("/proc/self/clear_refs", "w").write("5")  # from here on the peak is this call's
        before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
        ops.masked_topk_(w, m, SIZE // 2)
        peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")][0]
        print(int(peak.split()[1]) * 1024 - before, w.element_size())
    """
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120)
    extra, width = map(int, run.stdout.split())
    assert extra <= size * width / 32 + (16 << 20)


@pytest.mark.slow
def test_more_than_2_to_the_31_entries():
    size = 2**31 + 1000
    weight = torch.ones(size, dtype=torch.bfloat16)
    weight[-3:] = torch.tensor([0.25, -0.5, 0.25])
    mask = torch.full(((size + 7) // 8,), 255, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert ops.masked_topk_(weight, mask, 2**31 + 3).tolist() == [1.0]
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 <= size * 2 / 32 + (16 << 20)
    # The three small ones, then the first 2**31 of the ones.
    assert weight[: 2**31].count_nonzero() == 0
    assert weight[2**31 : -3].min() == 1
    assert weight[-3:].tolist() == [0, 0, 0]
    assert mask[: 2**28].count_nonzero() == 0
    assert mask[2**28 : -1].min() == 255
    assert mask[-1] == 0b00011111


def test_numpy_has_no_entries_in_no_arrays():
    core = pytest.importorskip("layercollapse_core")
    assert core.masked_topk_([], [], [0], scope="global").tolist() == [0]
    with pytest.raises(LayerCollapseError, match="expected at most the 0 entries kept, got 5"):
        core.masked_topk_([], [], [5], scope="global")
