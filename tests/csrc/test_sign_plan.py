"""How an activation is cut for the GPU's loops: by numbers alone, so that sizes may be what no memory here holds."""

import itertools
import math

import pytest

_core = pytest.importorskip("layercollapse_core._core", reason="the C++ part is not built")
from layercollapse_core._core import Columns, Runs, SignLimits, Strided  # noqa: E402

from layercollapse.kernels.bits import FLOAT_TYPES  # noqa: E402
from layercollapse.ops import cpu  # noqa: E402

INT32 = 2**31  # what the kernels index a part by
VECTOR, MOST_ROWS = _core.VECTOR, 65535  # bytes of a load, values that a packed counter takes
LIMITS = SignLimits()

# name: shape, strides, channel dimension, bytes of an entry, the loop that reads it
HUGE = {
    "one run of 8 GiB": ((1, 2**32), (2**32, 1), 0, 2, Runs),
    "one run of 64 GiB": ((1, 2**34), (2**34, 1), 0, 4, Runs),
    "runs that are no multiple of the cut": ((3, 2, 2**31 + 24), (2**32 + 48, 2**31 + 24, 1), 1, 2, Runs),
    "2^31 rows": ((2**31, 8), (8, 1), 1, 2, Columns),
    "2^32 rows, narrow": ((2**32, 3), (3, 1), 1, 4, Columns),
    "rows in groups": ((2**20, 2**12, 8), (2**16, 8, 1), 2, 2, Columns),
    "rows in few groups": ((2, 2**31 + 1, 4), (2**40, 4, 1), 2, 4, Columns),
    "a row of 2^32 entries": ((2, 2**20, 64, 64), (2**32, 2**12, 64, 1), 1, 2, Strided),
    "2^33 single entries": ((2**32, 2), (4, 2), 1, 4, Strided),
}


def plan(shape, strides, channel_dim, width, address=0, limits=LIMITS):
    return _core.sign_plan(shape, strides, channel_dim, width, address, limits)


def entries(part, channels):
    if isinstance(part, Columns):
        return part.width * part.outer[0] * part.inner[0]
    if isinstance(part, Runs):
        return part.width * part.outer[0] * channels
    return math.prod(size for size, _ in part.dims) * channels


@pytest.mark.parametrize("name", HUGE)
def test_what_is_too_large_for_32_bits_is_cut_into_parts_that_are_not(name):
    shape, strides, channel_dim, width, loop = HUGE[name]
    vector, channels = VECTOR // width, shape[channel_dim]
    parts, _ = plan(shape, strides, channel_dim, width)
    assert sum(entries(part, channels) for part in parts) == math.prod(shape)
    assert isinstance(parts[0], loop)
    for part in parts:
        # A block of a grid of 2^12 multiplies its number with the units.
        assert part.strips * part.chunks < 2**51
        if isinstance(part, Columns):
            assert part.width < INT32
            # A program may look at a tile of rows past its last.
            assert part.outer[0] * part.inner[0] + 2 * LIMITS.block * LIMITS.unroll < INT32
        elif isinstance(part, Runs):
            assert part.width // vector * 4 < INT32
            assert part.chunks < INT32
        else:
            assert part.most * part.tile < INT32


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("shape", [(70_000, 8), (70_000, 4096), (9, 1024, 7, 7), (3, 2, 40_000), (1000, 3), (5, 7)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_units_cover_a_part_and_its_counters_take_what_they_get(shape, width, channels_last):
    strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    if channels_last:
        strides = [stride * shape[1] for stride in strides]
        strides[0], strides[1] = math.prod(shape[1:]), 1
    vector = VECTOR // width
    for part in plan(shape, strides, 1, width)[0]:
        if isinstance(part, Columns):
            lanes, words = LIMITS.block // part.cols, part.width // vector * 4
            assert part.cols * lanes == LIMITS.block
            assert (part.strips - 1) * part.cols < words <= part.strips * part.cols
            assert (part.chunks - 1) * lanes < part.outer[0] * part.inner[0] <= part.chunks * lanes
            assert part.most * lanes <= MOST_ROWS
        elif isinstance(part, Runs):
            pieces = -(-part.width // vector * 4 // (LIMITS.block * LIMITS.unroll))
            assert (part.strips, part.chunks) == (shape[1], part.outer[0] * pieces)
            assert part.most * LIMITS.unroll <= MOST_ROWS
        else:
            samples = math.prod(size for size, _ in part.dims)
            assert (part.strips - 1) * part.cols < shape[1] <= part.strips * part.cols
            assert (part.chunks - 1) * part.tile < samples <= part.chunks * part.tile


@pytest.mark.parametrize("resident", [1, 4, 1056])
@pytest.mark.parametrize("least", [1, 8])
def test_no_more_blocks_than_are_resident_and_none_without_work(resident, least):
    for units in (1, 7, 8, 9, 1055, 1056, 1057, 8448, 8449, 2**40):
        blocks = _core.block_count(units, resident, least)
        assert 1 <= blocks <= min(resident, units)
        assert blocks == resident or units <= blocks * least


@pytest.mark.parametrize("largest", [16, 64, 1 << 30])
@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((5, 8), (8, 1)),
        ((3, 7, 8), (64, 8, 1)),
        ((2, 33, 4), (200, 4, 1)),
        ((50, 3), (3, 1)),
        ((2, 2, 72), (144, 72, 1)),
        ((5, 8), (-8, 1)),
        ((3, 7, 8), (8, -24, -1)),
        ((3, 2, 2, 2, 2, 3), (1, 96, 3, 48, 7, 200)),
    ],
)
def test_the_parts_of_a_layout_are_all_of_it_once(shape, strides, largest):
    limits = SignLimits(long_run=128, largest=largest)
    for channel_dim in range(len(shape)):
        places = []
        for part in plan(shape, strides, channel_dim, 4, 1 << 20, limits)[0]:
            if isinstance(part, Columns):
                dims = [(part.width, 1), part.outer, part.inner]
            elif isinstance(part, Runs):
                dims = [(part.width, 1), part.outer, (shape[channel_dim], part.channel_stride)]
            else:
                dims = [*part.dims, (shape[channel_dim], part.channel_stride)]
            steps = [range(0, size * stride, stride) if stride else [0] * size for size, stride in dims]
            places += [part.start + sum(at) for at in itertools.product(*steps)]
        every = itertools.product(*(range(0, n * s, s) for n, s in zip(shape, strides, strict=True)))
        assert sorted(places) == sorted(map(sum, every))


def test_expanded_dimensions_are_read_once():
    (part,), repeat = plan((3, 16, 5), (16, 1, 0), 1, 4)
    assert (entries(part, 16), repeat) == (48, 5)
    assert plan((0, 16), (16, 1), 1, 4) == ([], 1)


@pytest.mark.parametrize(
    ("dtype", "bound", "magnitude"),
    [
        (0, 6.0, 0x40C00000),
        (0, 1e39, 0x7F800000),
        (0, 1e-45, 1),
        (1, 6.0, 0x40C0),
        (1, 6.001, 0x40C1),
        (1, 1e39, 0x7F80),
        (2, 6.0, 0x4600),
        (2, 6.0001, 0x4601),
        (2, 65504.0, 0x7BFF),
        (2, 65505.0, 0x7C00),
        (2, 1e-42, 1),
    ],
)
def test_the_smallest_magnitude_at_least_a_bound(dtype, bound, magnitude):
    assert _core.magnitude_at_least(dtype, bound) == magnitude


def test_types_have_the_codes_of_the_core():
    assert {dtype: kind.code for dtype, kind in FLOAT_TYPES.items()} == cpu.DTYPE_CODES
    for kind in FLOAT_TYPES.values():
        assert _core.magnitude_at_least(kind.code, 1e39) == kind.infinity
