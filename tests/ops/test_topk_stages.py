"""The stages of `masked_topk_` by themselves: ranks that hold a part each get the masks of one that holds all."""

import re
import threading
import types

import pytest
import torch

from checkout import ROOT
from layercollapse import LayerCollapseError, ops
from layercollapse.kernels import cuda, triton_backend
from layercollapse.ops import reference

BACKENDS = [name for name, status in ops.backends().items() if status.available]
SIMULATED = triton_backend.interpreted() or cuda.emulated()
TYPES = [torch.float32, torch.bfloat16, torch.float16]
INF, NAN = float("inf"), float("nan")
DOCS = ROOT / "docs" / "sharded.md"
EXAMPLE = re.search(r"```python\n(import torch\.distributed as dist\n.*?)```", DOCS.read_text(), re.DOTALL)[1]


class Ranks:
    """torch.distributed as threads see it; they run in turns, because neither emulation of a GPU knows threads."""

    def __init__(self, size):
        self.turn = threading.Lock()
        self.size, self.barrier, self.given = size, threading.Barrier(size), [None] * size
        self.bytes = [0] * size

    def of(self, rank):
        return types.SimpleNamespace(
            get_rank=lambda: rank,
            get_world_size=lambda: self.size,
            all_reduce=lambda tensor: tensor.copy_(torch.stack(self.gather(rank, tensor)).sum(0)),
            all_gather=lambda out, tensor: [a.copy_(b) for a, b in zip(out, self.gather(rank, tensor), strict=True)],
        )

    def gather(self, rank, tensor):
        self.given[rank] = tensor.clone()
        self.bytes[rank] += tensor.nbytes
        self.wait()
        everyone = list(self.given)
        self.wait()
        return everyone

    def wait(self):
        self.turn.release()
        try:
            self.barrier.wait(60)
        finally:
            self.turn.acquire()


def sharded(shards, k, backend):
    """Run the documented example on a thread per shard; return what each returned or raised, and the bytes it gave."""
    ranks, results = Ranks(len(shards)), [None] * len(shards)

    def work(rank):
        scope = {}
        exec(EXAMPLE.replace("import torch.distributed as dist\n", ""), scope)
        scope["dist"] = ranks.of(rank)
        try:
            with ranks.turn, ops.use_backend(backend):
                results[rank] = scope["sharded_topk_"](*shards[rank], k, device_of(backend))
        except LayerCollapseError as error:
            results[rank] = str(error)
        except BaseException as error:
            results[rank] = error
            ranks.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(shards))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, ranks.bytes


DATA = {
    "normal": lambda n, g: torch.randn(n, generator=g),
    "few values": lambda n, g: torch.randint(-3, 4, (n,), generator=g).float(),
    "equal": lambda n, g: torch.full((n,), -0.5),
    "extremes": lambda n, g: torch.tensor([0.0, -0.0, 1e-40, -1e-40, INF, -INF, 65504.0])[
        torch.randint(7, (n,), generator=g)
    ],
}


def shards_of(count, data, dtypes, seed=0):
    """Uneven shards: of several tensors, of one, of none."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [[(40, 9), (7,), (130,)], [(1000,)], [], [(3, 5, 2), (0, 4)]][:count]
    shards, number = [], 0
    for shapes in sizes:
        weights = []
        for shape in shapes:
            numel = torch.Size(shape).numel()
            weights.append(DATA[data](numel, generator).to(dtypes[number % len(dtypes)]).view(shape))
            number += 1
        if len(weights) == 3:
            weights[0] = weights[0].t().contiguous().t()
        masks = [ops.pack_mask(torch.rand(weight.shape, generator=generator) < 0.8) for weight in weights]
        shards.append((weights, masks))
    return shards


def device_of(backend):
    return "cuda" if backend in ("triton", "cuda") and not SIMULATED else "cpu"


def copies_of(shards, backend="reference"):
    """The same on the device of a backend, with the same strides."""
    device = device_of(backend)
    return [([w.clone().to(device) for w in ws], [m.clone().to(device) for m in masks]) for ws, masks in shards]


def bytes_of(shards):
    tensors = [tensor for weights, masks in shards for tensor in (*weights, *masks)]
    return [tensor.cpu().contiguous().view(-1).view(torch.uint8).tolist() for tensor in tensors]


def kept_in(shards):
    pairs = [pair for weights, masks in shards for pair in zip(weights, masks, strict=True)]
    return sum(int(ops.unpack_mask(mask, weight.shape).sum()) for weight, mask in pairs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtypes", [TYPES[:1], TYPES[1:2], TYPES[2:], TYPES], ids=["fp32", "bf16", "fp16", "mixed"])
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ranks_agree_with_one_process(count, data, dtypes, backend):
    shards = shards_of(count, data, dtypes)
    kept = kept_in(shards)
    for k in (kept // 3,) if triton_backend.interpreted() else (0, 1, kept // 3, kept - 1, kept):
        mine, whole = copies_of(shards, backend), copies_of(shards)
        all_weights = [weight for weights, _ in whole for weight in weights]
        all_masks = [mask for _, masks in whole for mask in masks]
        threshold = reference.masked_topk_(all_weights, all_masks, [k], "global")
        results, sent = sharded(mine, k, backend)
        assert results == [threshold.item()] * count
        assert bytes_of(mine) == bytes_of(whole)
        assert max(sent) <= 3 * 16_408 + 8


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_across_ranks_go_in_the_order_of_ranks(backend):
    shards = [([torch.ones(n)], [ops.pack_mask(torch.ones(n, dtype=torch.bool))]) for n in (10, 3, 20, 5)]
    shards = copies_of(shards, backend)
    results, _ = sharded(shards, 17, backend)
    assert results == [1.0] * 4
    assert [int(weights[0].count_nonzero()) for weights, _ in shards] == [0, 0, 16, 5]
    assert shards[2][0][0].tolist() == [0] * 4 + [1] * 16


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("k", "spoil", "message"), [(3, True, "got NaN from 1 ranks"), (10**6, False, "at most the")])
def test_all_ranks_raise_and_nothing_changes(backend, k, spoil, message):
    shards = shards_of(4, "normal", TYPES)
    if spoil:
        shards[1][0][0][5] = NAN
    shards = copies_of(shards, backend)
    before = bytes_of(shards)
    results, _ = sharded(shards, k, backend)
    assert all(isinstance(result, str) and message in result for result in results)
    assert bytes_of(shards) == before


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("limits", [(0, ops.TOPK_END), (0x3F000000, 0x3F400001), (0x3F800000, 0x3F800001)])
def test_counts_are_those_of_the_reference(backend, limits):
    for data in DATA:
        ((weights, masks),) = shards_of(1, data, TYPES)
        lo, hi = limits
        ((its_weights, its_masks),) = copies_of([(weights, masks)], backend)
        with ops.use_backend(backend):
            got = ops.topk_count(its_weights, its_masks, lo=lo, hi=hi).cpu()
        expected = torch.zeros_like(got)
        reference.topk_count_(weights, masks, lo, hi, expected)
        assert torch.equal(got, expected)
        assert got[1] == kept_in([(weights, masks)])
        assert got[2:].sum() <= got[1]


def test_counts_made_by_hand():
    weight = torch.tensor([0.0, -1.0, 1.0, INF, -2.0, 3.0])
    mask = ops.pack_mask(torch.tensor([True, True, False, True, True, True]))
    counts = ops.topk_count(weight, mask)
    filled = counts[3:].nonzero().flatten()
    assert counts[:3].tolist() == [0, 5, 0]
    assert filled.tolist() == [0, 0x3F800000 >> 20, 0x40000000 >> 20, 0x40400000 >> 20, 0x7F800000 >> 20]
    found = ops.topk_threshold(counts, 3)
    assert found == (0x40000000, 0x40100000, 1, 3 + (0x40000000 >> 20), False)
    one = ops.topk_count(weight, mask, lo=0x40000000, hi=0x40000001)
    assert one[:4].tolist() == [0, 5, 2, 1]
    assert not one[4:].any()
    last = ops.topk_threshold(one, 3, lo=0x40000000, hi=0x40000001)
    assert (last.found, last.magnitude, last.ties) == (True, 2.0, 1)
    ops.topk_apply(weight, mask, last.lo, last.ties)
    assert weight.tolist() == [0, 0, 0, INF, 0, 3]
    assert mask.tolist() == [0b101000]


def test_keys_of_float64_tell_apart_what_float32_cannot():
    generator = torch.Generator().manual_seed(3)
    doubles = 1 + torch.randint(0, 5, (300,), generator=generator).double() * 2.0**-52
    whole = [torch.randn(100, generator=generator), doubles, torch.tensor([5e-324, -1e300, 0.0, -0.0, INF]).double()]
    keep = [ops.pack_mask(torch.rand(w.shape, generator=generator) < 0.8) for w in whole]
    total = kept_in([(whole, keep)])
    for k in (1, total // 2, total):
        (weights, masks), (expected, expected_masks) = copies_of([(whole, keep)] * 2)
        threshold = reference.masked_topk_(expected, expected_masks, [k], "global")
        lo, hi, rounds = 0, ops.TOPK_END64, 0
        while True:  # two ranks, of which the first has no float64
            parts = [(weights[:1], masks[:1]), (weights[1:], masks[1:])]
            counts = [ops.topk_count(*part, lo=lo, hi=hi, double=True) for part in parts]
            found, rounds = ops.topk_threshold(sum(counts), k, lo=lo, hi=hi, double=True), rounds + 1
            if found.found:
                break
            lo, hi = found.lo, found.hi
        assert rounds <= 6
        assert found.magnitude == threshold.item()
        first = min(found.ties, int(counts[0][found.bin]))
        ops.topk_apply(*parts[0], found.lo, first, double=True)
        ops.topk_apply(*parts[1], found.lo, found.ties - first, double=True)
        assert bytes_of([(weights, masks)]) == bytes_of([(expected, expected_masks)])
    assert ops.topk_threshold(ops.topk_count(whole, keep, double=True), 0, double=True).magnitude == 0.0
    with pytest.raises(LayerCollapseError, match="hi <= 0x7f800001, got 0 and 9218868437227405313"):
        ops.topk_count(whole[:1], keep[:1], hi=ops.TOPK_END64)
    with pytest.raises(LayerCollapseError, match="threshold: expected a key from 0 to below 0x7ff0000000000001"):
        ops.topk_apply(whole, keep, ops.TOPK_END64, 0, double=True)


def test_bad_arguments():
    weight, mask = torch.ones(9), ops.pack_mask(torch.ones(9, dtype=torch.bool))
    for lo, hi in ((-1, 5), (5, 5), (0, ops.TOPK_END + 1)):
        with pytest.raises(LayerCollapseError, match="lo, hi: expected 0 <= lo < hi <= 0x7f800001"):
            ops.topk_threshold(torch.zeros(2051, dtype=torch.int64), 0, lo=lo, hi=hi)
    with pytest.raises(LayerCollapseError, match="lo, hi: expected"):
        ops.topk_count(weight, mask, lo=3, hi=3)
    with pytest.raises(LayerCollapseError, match=r"weights\[0\]: expected float32, bfloat16 or float16, got float64"):
        ops.topk_count(weight.double(), mask)
    with pytest.raises(LayerCollapseError, match=r"counts: expected an int64 tensor of shape \(2051,\)"):
        ops.topk_threshold(torch.zeros(7), 1)
    with pytest.raises(LayerCollapseError, match="k: expected an int of at least 0"):
        ops.topk_threshold(torch.zeros(2051, dtype=torch.int64), -1)
    with pytest.raises(LayerCollapseError, match=r"counts: expected the k-th smallest of k=4 in \[lo, hi\)"):
        ops.topk_threshold(ops.topk_count(weight, mask, lo=0, hi=9), 4, lo=0, hi=9)
    with pytest.raises(LayerCollapseError, match="ties: expected 0 to the 9 entries"):
        ops.topk_apply(weight, mask, 0x3F800000, 10)
    weight[3] = NAN
    with pytest.raises(LayerCollapseError, match="weights: expected numbers, got NaN"):
        ops.topk_apply(weight, mask, 0x3F800000, 1)
    assert weight.nan_to_num(7).tolist() == [1] * 3 + [7] + [1] * 5
    assert mask.tolist() == [255, 1]
    assert ops.topk_count([], []).tolist() == [0] * 2051
    ops.topk_apply([], [], 5, 0)
