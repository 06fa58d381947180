"""Parts of weights on several ranks get the masks of whole weights on one, bit for bit."""

import itertools
import threading

import pytest
import torch
import torch.distributed as dist
from torch import nn

import processes
from layercollapse import LayerCollapseError, ops
from layercollapse._util.ranks import Ranks
from layercollapse.prune import shards
from layercollapse.prune.masks import WeightMasks

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


class Thread(Ranks):
    """A rank that is a thread; all of them take turns."""

    def __init__(self, number, everyone):
        super().__init__()
        self.number, self.everyone = number, everyone

    def _reduce(self, tensor, op):
        self.everyone.given[self.number] = tensor.clone()
        self.everyone.barrier.wait(60)
        all_given = torch.stack(self.everyone.given)
        self.everyone.barrier.wait(60)
        return tensor.copy_(all_given.sum(0) if op == dist.ReduceOp.SUM else all_given.amax(0))


class Everyone:
    def __init__(self, size):
        self.given, self.barrier = [None] * size, threading.Barrier(size)


def in_threads(size, work):
    everyone, results = Everyone(size), [None] * size

    def run(number):
        try:
            results[number] = work(Thread(number, everyone))
        except LayerCollapseError as error:
            results[number] = str(error)
        except BaseException as error:
            results[number] = error
            everyone.barrier.abort()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def cut(shape, dim, pieces):
    """Parts of a shape along one dimension, as torch.chunk makes them; the last may be empty."""
    step = -(-shape[dim] // pieces)
    for piece in range(pieces):
        first = min(piece * step, shape[dim])
        start, size = [0] * len(shape), list(shape)
        start[dim], size[dim] = first, min(step, shape[dim] - first)
        yield shards.Part(shape, tuple(start), tuple(size))


def held(name, weight, mask, part, counts=True):
    return shards.Held(name, weight[part.block].clone(), ops.pack_mask(mask[part.block]), part, counts)


def weights(dtypes, data, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(7, 5, 3), (10, 4), (3,), (2, 9)]
    for shape, dtype in zip(shapes, itertools.cycle(dtypes), strict=False):
        if data == "normal":
            weight = torch.randn(shape, generator=generator)
        else:
            weight = torch.randint(-2, 3, shape, generator=generator) / 4
        yield weight.to(dtype), torch.rand(shape, generator=generator) < 0.8


@pytest.mark.parametrize("dtypes", [*([dtype] for dtype in DTYPES), DTYPES], ids=str)
@pytest.mark.parametrize("data", ["normal", "ties"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_blocks_of_any_dimension_get_the_masks_of_whole_weights(ranks, data, dtypes):
    whole = list(weights(dtypes, data))
    kept = [int(mask.sum()) for _, mask in whole]
    parts = [list(cut(tuple(w.shape), number % w.ndim, ranks)) for number, (w, _) in enumerate(whole)]
    total = sum(kept)
    for scope, counts in [("global", [k]) for k in (0, 1, total // 3, total - 1, total)] + [
        ("layer", [k // 2 for k in kept]),
        ("layer", kept),
    ]:
        expected, masks = [w.clone() for w, _ in whole], [ops.pack_mask(mask) for _, mask in whole]
        ops.masked_topk_(expected, masks, counts, scope=scope)

        def work(rank, scope=scope, counts=counts):
            own = [held(str(i), w, m, parts[i][rank.number]) for i, (w, m) in enumerate(whole)]
            groups = [own] if scope == "global" else [[one] for one in own]
            found = shards.thresholds(groups, counts, rank)
            shards.clear(groups, counts, rank)
            full = [shards.gathered(one, rank) for one in own]
            return own, full, [lost for threshold in found for lost in threshold.lost]

        for own, full, lost in in_threads(ranks, work):
            assert all(map(torch.equal, full, masks))
            assert all(torch.equal(one.weight, expected[i][one.part.block]) for i, one in enumerate(own))
            left = [int(ops.unpack_mask(mask, w.shape).sum()) for mask, w in zip(masks, expected, strict=True)]
            assert lost == [before - after for before, after in zip(kept, left, strict=True)]


def test_what_several_ranks_hold_is_counted_once():
    ((weight, mask), *_) = weights([torch.bfloat16], "ties")
    halves = list(cut(tuple(weight.shape), 1, 2))
    expected, packed = weight.clone(), ops.pack_mask(mask)
    ops.masked_topk_(expected, packed, 40)

    def work(rank):  # each half is on two ranks
        own = held("a", weight, mask, halves[rank.number % 2], rank.number in (1, 2))
        shards.clear([[own]], [40], rank)
        return own

    for one in in_threads(4, work):
        assert torch.equal(one.weight, expected[one.part.block])


@pytest.mark.parametrize(
    ("spoil", "count", "message"), [(True, 3, "got NaN from 1 ranks"), (False, 106, "at most the")]
)
def test_all_ranks_raise_and_nothing_changes(spoil, count, message):
    weight, mask = torch.ones(7, 5, 3), torch.ones(7, 5, 3, dtype=torch.bool)
    if spoil:
        weight[6, 0, 0] = float("nan")
    parts, kept = list(cut((7, 5, 3), 0, 3)), []

    def work(rank):
        own = held("a", weight, mask, parts[rank.number])
        kept.append(own)
        shards.clear([[own]], [count], rank)

    assert all(message in result for result in in_threads(3, work))
    assert all(torch.equal(one.weight.nan_to_num(9), weight[one.part.block].nan_to_num(9)) for one in kept)
    assert all(bool(one.kept().all()) for one in kept)


def test_places_in_a_block_are_places_in_the_whole():
    whole = torch.arange(2 * 6 * 4).view(2, 6, 4)
    for part in (*cut((2, 6, 4), 1, 4), *cut((2, 6, 4), 2, 3), shards.Part((2, 6, 4), (1, 2, 1), (1, 3, 2))):
        block = whole[part.block]
        assert torch.equal(part.flat(torch.arange(block.numel())), block.flatten())


class Weights(nn.Module):
    """DTensors of every type that the placements give, from one source of numbers."""

    def __init__(self, placed=None):
        super().__init__()
        for number, (weight, mask) in enumerate(weights(DTYPES, "ties", seed=4)):
            value = weight * mask
            self.register_parameter(f"w{number}", nn.Parameter(value if placed is None else placed(number, value)))


def pruned(model):
    masks = WeightMasks(model, [name for name, _ in model.named_parameters()])
    kept, sums = dict(masks.kept), masks.magnitudes()
    shares = [masks.under_one_threshold(masks.names, count) for count in (20, 90)]
    restore = masks.clear({name: count // 2 for name, count in masks.kept.items()})
    half = masks.state_dict()
    restore()
    back = masks.state_dict()
    masks.clear(shares[0])
    masks.check()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    revived = masks.revived()
    masks.apply()
    return kept, sums, shares, half, back, masks.state_dict(), revived, masks.revived(), dict(masks.kept)


def on_meshes(rank, size):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    line, results = init_device_mesh("cpu", (size,)), {}

    def uneven(number, value):
        """One rank has nothing, the first more than the others."""
        return distribute_tensor(value, line, [Shard(number % value.ndim)])

    results["by each dimension"] = pruned(Weights(uneven))
    results["by the first"] = pruned(Weights(lambda number, value: distribute_tensor(value, line, [Shard(0)])))
    results["one plain"] = pruned(Weights(lambda number, value: uneven(number, value) if number % 2 else value))
    results["replicas"] = pruned(Weights(lambda number, value: distribute_tensor(value, line, [Replicate()])))
    if size == 4:
        square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
        for name, first in (("replicas of parts", Replicate()), ("by two", Shard(1)), ("twice by one", Shard(0))):
            results[name] = pruned(
                Weights(
                    lambda n, v, first=first: distribute_tensor(
                        v, square, [first if v.ndim > 1 else Replicate(), Shard(0)]
                    )
                )
            )
        results["a part of the mesh"] = pruned(
            Weights(lambda n, v: distribute_tensor(v, square["b"] if n % 2 else square, [Shard(0)] * (2 - n % 2)))
        )
    sums = nn.Module()
    sums.w = nn.Parameter(DTensor.from_local(torch.ones(4, 3), line, [Partial()]))
    with pytest.raises(
        LayerCollapseError, match=r"weight 'w': .* got \(4, 3\) with the placements \(Partial\(sum\),\)"
    ):
        WeightMasks(sums, ["w"])
    return results


@pytest.mark.long
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_dtensors_get_the_masks_of_one_process(size):
    expected = pruned(Weights())
    for results in processes.run(size, on_meshes, size):
        for name, got in results.items():
            for mine, one in zip(got, expected, strict=True):
                if isinstance(one, dict) and isinstance(next(iter(one.values())), torch.Tensor):
                    assert mine.keys() == one.keys(), name
                    assert all(torch.equal(mine[key], one[key]) for key in one), name
                else:
                    assert mine == one, name
