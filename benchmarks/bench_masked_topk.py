"""masked_topk_ against torch's pruning, selection alone, and the floor: pytest benchmarks/bench_masked_topk.py

Floor: a sum (one read) and an in-place multiplication by 1 (one read and write) of the weights.
"""

import pytest
import torch

from layercollapse.bench import masked_topk_case

MODELS = {
    "one of 25M": [(25_000_000,)],
    "100 of 250k": [(250_000,)] * 100,
    "1000 of 1000": [(1000,)] * 1000,
    "one of 1M": [(1_000_000,)],
}
PROVIDERS = [
    "layercollapse",
    "prune.l1_unstructured",
    "np.partition, select only",
    "torch.kthvalue, select only",
    "torch.topk, select only",
]
SLOW = {"prune.l1_unstructured", "torch.topk, select only"}


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def dtype(request):
    return getattr(torch, request.param)


@pytest.fixture(scope="module", params=MODELS)
def case(request, dtype):
    return masked_topk_case(MODELS[request.param], dtype, "contiguous")


@pytest.mark.parametrize("provider", [*PROVIDERS, "floor"])
def test_masked_topk(benchmark, case, provider):
    call = case.floor if provider == "floor" else case.providers[provider]
    if provider != "floor":
        case.reset()
        case.agrees(call())
    benchmark.pedantic(call, setup=case.reset, rounds=2 if provider in SLOW else 7)
    benchmark.extra_info["gb_per_s"] = case.bytes / benchmark.stats["median"] / 1e9
