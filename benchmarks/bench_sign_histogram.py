"""sign_histogram against eager torch, the authors' formula and the floor: pytest benchmarks/bench_sign_histogram.py

Floor: one read of x (N·C·L·itemsize bytes), timed as a float32 sum over the same bytes. Sizes of some milliseconds;
`python benchmarks/record.py` measures the large ones.
"""

import pytest
import torch

from layercollapse.ops.bench_cases import OURS, sign_histogram_case

SHAPES = [(8, 256, 784), (64, 512, 49), (8, 16, 49)]


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def dtype(request):
    return getattr(torch, request.param)


@pytest.fixture(scope="module", params=["channels_first", "channels_last"])
def layout(request):
    return request.param


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def case(request, dtype, layout):
    return sign_histogram_case(request.param, dtype, layout)


@pytest.mark.parametrize("provider", ["floor", OURS, "torch, eager", "authors' formula"])
def test_sign_histogram(benchmark, case, provider):
    call = case.floor if provider == "floor" else case.providers[provider]
    if provider != "floor":
        case.agrees(call())
    benchmark.pedantic(call, rounds=7, warmup_rounds=1)
    benchmark.extra_info["gb_per_s"] = case.bytes / benchmark.stats["median"] / 1e9
