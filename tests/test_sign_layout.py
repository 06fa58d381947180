"""How an activation is cut for the GPU's loops: by numbers alone, so that sizes may be what no memory here holds."""

import itertools
import math

import pytest

from layercollapse.kernels import sign_layout
from layercollapse.kernels.bits import VECTOR
from layercollapse.kernels.sign_layout import Columns, Runs, Strided, columns_grid, plan, runs_grid, strided_grid

INT32, SPLITS = 2**31, 65535  # what the kernels index a part by, and what a grid's second dimension takes
TARGET = 2112  # programs: 16 for each multiprocessor of an H100

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


def entries(part, channels):
    if isinstance(part, Columns):
        return part.width * part.outer.size * part.inner.size
    if isinstance(part, Runs):
        return part.length * part.outer.size * channels
    return math.prod(dim.size for dim in part.dims) * channels


@pytest.mark.parametrize("name", HUGE)
def test_what_is_too_large_for_32_bits_is_cut_into_parts_that_are_not(name):
    shape, strides, channel_dim, width, loop = HUGE[name]
    vector, channels = VECTOR // width, shape[channel_dim]
    parts = plan(shape, strides, channel_dim, width, 0).parts
    assert sum(entries(part, channels) for part in parts) == math.prod(shape)
    assert isinstance(parts[0], loop)
    for part in parts:
        if isinstance(part, Columns):
            grid = columns_grid(part, vector, TARGET)
            assert part.width < INT32
            # A program may look at a tile of rows past its last.
            assert grid.rows + 2 * sign_layout.BLOCK * sign_layout.UNROLL < INT32
            assert grid.splits <= SPLITS
        elif isinstance(part, Runs):
            cut = runs_grid(part, channels, vector, TARGET)
            assert part.length // vector * 4 < INT32
            assert max(cut.pieces, channels * cut.parts) < INT32
        else:
            assert strided_grid(part, channels, TARGET).splits <= SPLITS


@pytest.mark.parametrize("largest", [16, 64, 1 << 30])
@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((5, 8), (8, 1)),
        ((3, 7, 8), (64, 8, 1)),
        ((2, 33, 4), (200, 4, 1)),
        ((50, 3), (3, 1)),
        ((2, 2, 72), (144, 72, 1)),
    ],
)
def test_the_parts_of_a_layout_are_all_of_it_once(shape, strides, largest, monkeypatch):
    monkeypatch.setattr(sign_layout, "LARGEST", largest)
    monkeypatch.setattr(sign_layout, "LONG_RUN", 128)
    for channel_dim in range(len(shape)):
        places = []
        for part in plan(shape, strides, channel_dim, 4, 0).parts:
            if isinstance(part, Columns):
                dims = [(part.width, 1), part.outer, part.inner]
            elif isinstance(part, Runs):
                dims = [(part.length, 1), part.outer, (shape[channel_dim], part.channel_stride)]
            else:
                dims = [*part.dims, (shape[channel_dim], part.channel_stride)]
            steps = [range(0, size * stride, stride) if stride else [0] * size for size, stride in dims]
            places += [part.start + sum(at) for at in itertools.product(*steps)]
        every = itertools.product(*(range(0, n * s, s) for n, s in zip(shape, strides, strict=True)))
        assert sorted(places) == sorted(map(sum, every))
