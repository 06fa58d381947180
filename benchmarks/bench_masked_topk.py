"""masked_topk_ against torch's pruning, selection alone, and the floor: pytest benchmarks/bench_masked_topk.py

Floor: a sum (one read) and an in-place multiplication by 1 (one read and write) of the weights. Sizes of some
milliseconds; `python benchmarks/record.py` measures the large ones.
"""

import pytest
import torch

from layercollapse.ops.bench_cases import masked_topk_case

MODELS = {
    "one of 1M": [(1_000_000,)],
    "20 of 50k": [(50_000,)] * 20,
    "300 of 1000": [(1000,)] * 300,
}
PROVIDERS = [
    "layercollapse",
    "prune.l1_unstructured",
    "prune.global_unstructured",
    "np.partition, select only",
    "torch.kthvalue, select only",
    "torch.topk, select only",
]


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def dtype(request):
    return getattr(torch, request.param)


@pytest.fixture(scope="module", params=["layer", "global"])
def scope(request):
    return request.param


@pytest.fixture(scope="module", params=MODELS)
def case(request, dtype, scope):
    return masked_topk_case(MODELS[request.param], dtype, scope=scope)


@pytest.mark.parametrize("provider", ["floor", *PROVIDERS])
def test_masked_topk(benchmark, case, provider):
    if provider not in ("floor", *case.providers):
        pytest.skip("for the other scope")
    call = case.floor if provider == "floor" else case.providers[provider]
    case.reset()
    if provider != "floor":
        answer = call()
        case.agrees(answer() if callable(answer) else answer)
    benchmark.pedantic(call, setup=case.reset, rounds=5)
    benchmark.extra_info["gb_per_s"] = case.bytes / benchmark.stats["median"] / 1e9
