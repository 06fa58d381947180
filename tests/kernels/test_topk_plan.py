"""How masked_topk_ on a GPU cuts weights: the plans of the C++ core, and the cache that keeps them."""

import math
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layercollapse.kernels import topk_plan
from layercollapse.kernels.bits import FLOAT_TYPES
from layercollapse.kernels.tables import Kept

_core = pytest.importorskip("layercollapse_core._core")
AT = _core.topk_columns
WIDTH = {code: width for code, width, _ in FLOAT_TYPES.values()}


def plan_of(shapes, dtypes, scope="layer", *, strides=None, first=4096, segments=16, shortest=64, sample=64, cuda=True):
    """A plan of weights at made-up addresses, and its segments, groups, ids and parts."""
    steps = strides or [list(np.cumprod([1, *shape[:0:-1]])[::-1]) if shape else [] for shape in shapes]
    values = [first + 2**24 * i for i in range(len(shapes))]
    masks = [7 + 2**20 * i for i in range(len(shapes))]
    options = {"lists": cuda, "kept": not cuda, "tails": cuda}
    plan = _core.TopkPlan(
        values, masks, dtypes, shapes, steps, scope == "global", segments, shortest, sample, **options
    )
    sizes = [plan.segments * AT["FIELDS"], plan.groups * AT["FIELDS"], plan.dims * 2, plan.segments, plan.parts]
    parts = np.split(plan.table, np.cumsum(sizes))
    assert not parts.pop().size
    rows, groups, dims, ids, drawers = parts
    return plan, rows.reshape(-1, AT["FIELDS"]), groups.reshape(-1, AT["FIELDS"]), dims.reshape(-1, 2), ids, drawers


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 40), max_size=3), st.integers(0, 2)), min_size=1, max_size=6),
    st.sampled_from(["layer", "global"]),
    st.sampled_from([4096, 4098]),
    st.booleans(),
)
def test_segments_cover_every_entry_once(weights, scope, first, cuda):
    shapes, dtypes = map(list, zip(*weights, strict=True))
    plan, rows, groups, dims, ids, parts = plan_of(shapes, dtypes, scope, first=first, cuda=cuda)
    at = 0
    for tensor, (shape, dtype) in enumerate(weights):
        begin = 0
        while begin < math.prod(shape):
            row = rows[at]
            plain = row[AT["DIMS"]] == 0
            address = 2**24 * tensor + first + (begin * WIDTH[dtype] if plain else 0)
            assert row[AT["BEGIN"]] == begin
            assert row[AT["ADDRESS"]] == address
            assert row[AT["MASK"]] == 7 + 2**20 * tensor + begin // 8
            assert begin % 8 == 0
            assert not plain or address % 16 == 0
            assert not plain or cuda or row[AT["COUNT"]] % 8 == 0
            assert row[AT["GROUP"]] == (0 if scope == "global" else tensor)
            if not plain:
                place, number = divmod(int(row[AT["DIMS"]]), 256)
                assert math.prod(dims[place : place + number, 0]) == math.prod(shape)
            begin += int(row[AT["COUNT"]])
            at += 1
        assert begin == math.prod(shape)
    assert at == len(rows) == plan.segments
    assert sorted(ids) == list(range(at))
    assert sum(count for *_, count in plan.classes) == at
    for kind, strided, begin, count in plan.classes:
        members = rows[ids[begin : begin + count]]
        assert set(members[:, AT["KIND"]]) == {kind}
        assert set(members[:, AT["DIMS"]] != 0) == {strided}
    assert groups[:, AT["SEGMENTS"]].sum() == at
    assert set(parts >> 8) == set(range(len(groups)))


def test_counters_and_lists_do_not_overlap():
    shapes = [[100], [3000], [5], [40, 50], [7000]]
    plan, rows, groups, *_ = plan_of(shapes, [0, 0, 1, 2, 0], shortest=1024)
    gate, state, sums, ties, bins, listed, lists, sample, end = plan.scratch
    assert (gate, state) == (0, 16)
    assert sums - state == len(groups) * AT["STATE_FIELDS"] * 8
    assert ties - sums >= 8 * (3 * AT["BINS"] + 2)  # three groups of more than a sample
    assert lists % 16 == sample % 4 == 0
    wide = rows[rows[:, AT["EACH"]] > 0]
    assert len(wide)
    assert not (wide[:, AT["EACH"]] % 4).any()
    assert (wide[:, AT["LIST"]][1:] - wide[:, AT["LIST"]][:-1] == 8 * wide[:-1, AT["EACH"]]).all()
    assert sample - lists == 4 * 8 * wide[:, AT["EACH"]].sum()
    assert (
        np.diff(rows[:, AT["ROW"]]) == np.where(groups[rows[:-1, AT["GROUP"]], AT["DRAWN"]] == 0, 1, AT["BINS"])
    ).all()
    assert listed - bins >= 4 * (rows[-1, AT["ROW"]] + AT["BINS"])
    assert end - sample == 4 * groups[:, AT["DRAWN"]].sum()


@pytest.mark.parametrize(
    ("count", "size", "dtype", "bound"),
    [
        (1000, 1000, 0, 0.05),  # 4 MB of weights, of which 90 MB were scratch
        (1000, 10, 1, 10.0),  # 188 bytes for 20
        (1000, 16_384, 1, 0.01),  # read whole
        (100, 16_385, 1, 1.8),  # the worst of large groups: counters and a sample of a quarter
        (100, 65_536, 1, 0.8),
        (100, 65_536, 0, 0.5),
        (1, 10**9, 0, 0.067),  # the lists
        (1, 10**9, 1, 0.009),
    ],
)
def test_scratch_is_in_proportion_to_the_weights(count, size, dtype, bound):
    usual = {"segments": 2112, "shortest": AT["SHORTEST"], "sample": AT["SAMPLE"]}
    plan, *_ = plan_of([[size]] * count, [dtype] * count, **usual)
    assert plan.scratch[-1] <= bound * count * size * WIDTH[dtype]


def test_rounds_and_ranks_follow_k():
    plan, _, groups, *_ = plan_of([[40], [4000]], [1, 1])
    assert plan.rounds([0, 0]) == 0
    assert plan.rounds([3, 0]) == 1  # read whole
    assert plan.rounds([3, 1]) == 3
    assert plan_of([[4000]], [0])[0].rounds([1]) == 4
    drawn = groups[1, AT["DRAWN"]]
    ranks = plan.ranks([3, 2000])
    assert ranks[0].tolist() == [3, 2, 2]
    assert ranks[1, 1] < 2000 / 4000 * drawn < ranks[1, 2]
    assert plan.ranks([3, 1])[1, 1] == -1
    with pytest.raises(ValueError, match="one for each group"):
        plan.ranks([3])


# --- the cache --------------------------------------------------------------------------------------------


class Built:
    def __init__(self, weights, masks, scope):
        self.shapes = [weight.shape for weight in weights]


@pytest.fixture
def plan_for(monkeypatch):
    monkeypatch.setattr(topk_plan, "_plans", Kept(topk_plan.CACHED))
    return lambda weight, mask, scope="layer": topk_plan.plan_for(Built, [weight], [mask], scope)


def test_a_plan_is_kept_for_the_same_memory_and_layout_only(plan_for):
    memory, mask = torch.zeros(64), torch.zeros(8, dtype=torch.uint8)
    plan = plan_for(memory, mask)
    assert plan_for(memory.view(64), mask) is plan
    others = [memory.view(8, 8), memory.view(8, 8).t(), memory[1:], memory.view(torch.bfloat16)[:64], memory.clone()]
    assert len({id(plan_for(other, mask)) for other in others} | {id(plan)}) == 6
    assert plan_for(memory, mask.clone()) is not plan
    assert plan_for(memory, mask, "global") is not plan
    assert plan_for(memory, mask) is plan


def test_the_cache_is_bounded_and_keeps_no_weight_alive(plan_for):
    masks = torch.zeros(1, dtype=torch.uint8)
    weights = [torch.zeros(n + 1) for n in range(topk_plan.CACHED + 5)]
    for weight in weights:
        plan_for(weight, masks)
    assert len(topk_plan._plans) == topk_plan.CACHED
    last = weakref.ref(weights[-1])
    del weight, weights
    assert last() is None
