"""The reference by hand: every other backend is compared with it, so it is compared with nothing but numbers."""

import math

import pytest
import torch

from layercollapse import LayerCollapseError
from layercollapse.ops import reference

NAN, INF = float("nan"), float("inf")
TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", TYPES)
def test_signs_are_counted_and_added(dtype):
    tiny = torch.finfo(dtype).smallest_normal / 4  # subnormal, and not zero
    x = torch.tensor([[-1.0, 0.0, 2.0, NAN], [-0.0, -INF, INF, 6.0], [tiny, -tiny, 6.0, 7.0]], dtype=torch.float64)
    counts = torch.zeros(3, 5, dtype=torch.int64)
    reference.sign_histogram_(x.to(dtype), 0, 6.0, counts)
    expected = [[1, 1, 1, 1, 0], [1, 1, 2, 0, 2], [1, 0, 3, 0, 2]]
    assert counts.tolist() == expected
    reference.sign_histogram_(x.t().to(dtype), -1, 6.0, counts)
    assert counts.tolist() == [[2 * n for n in row] for row in expected]


def test_a_hash_tells_which_channels_are_positive():
    def hashes(rows):
        out = torch.zeros(len(rows), dtype=torch.int64)
        reference.sign_hashes_(torch.tensor(rows), 1, out)
        return out.tolist()

    same, other = hashes([[1.0, -1.0, 0.0], [2.0, NAN, -0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), []
    assert same[0] == same[1]
    assert len(set(same)) == 3
    for channel in range(130):  # three words: each bit of each counts
        row = [-1.0] * 130
        row[channel] = 1.0
        other.append(row)
    assert len(set(hashes([*other, [-1.0] * 130]))) == 131


@pytest.mark.parametrize(
    ("scope", "k", "kept", "thresholds"),
    [
        ("layer", [2, 1], [[1, 0, 0, 0], [0, 1]], [2.0, 0.5]),
        ("layer", [0, 2], [[1, 0, 1, 1], [0, 0]], [0.0, 2.0]),
        ("global", [2], [[1, 0, 1, 0], [0, 1]], [1.0]),
        ("global", [3], [[1, 0, 0, 0], [0, 1]], [2.0]),  # of the two of magnitude 2 the earlier
        ("global", [4], [[1, 0, 0, 0], [0, 0]], [2.0]),
    ],
)
def test_the_smallest_magnitudes_that_are_kept_go(scope, k, kept, thresholds):
    weights = [torch.tensor([-4.0, 0.25, 2.0, -1.0]), torch.tensor([0.5, -2.0])]
    masks = [reference.pack_mask(torch.tensor([True, False, True, True])), reference.pack_mask(torch.ones(2) > 0)]
    assert reference.masked_topk_(weights, masks, k, scope).tolist() == thresholds
    assert [reference.unpack_mask(m, w.shape).int().tolist() for m, w in zip(masks, weights, strict=True)] == kept
    assert [[int(v != 0) for v in w.tolist()] for w in weights] == kept
    assert not any(math.copysign(1, v) < 0 for w in weights for v in w.tolist() if v == 0)


def test_errors_of_the_data_change_nothing():
    weight, mask = torch.tensor([1.0, NAN]), reference.pack_mask(torch.tensor([True, True]))
    with pytest.raises(LayerCollapseError):
        reference.masked_topk_([weight], [mask], [1], "layer")
    with pytest.raises(LayerCollapseError):
        reference.masked_topk_([torch.ones(2)], [mask], [3], "layer")
    assert mask.tolist() == [3]
    assert weight[0] == 1


def test_a_mask_alone_gives_positive_zeros():
    weight = torch.tensor([[-1.0, NAN], [INF, 3.0]])
    reference.apply_mask_([weight], [reference.pack_mask(torch.tensor([False, False, False, True]))])
    assert weight.tolist() == [[0.0, 0.0], [0.0, 3.0]]
    assert math.copysign(1, weight[0, 0]) == 1


def test_magnitudes_are_counted_in_bins_of_a_power_of_two():
    one = torch.tensor(1.0).view(torch.int32).item()
    weight = torch.tensor([one - 1, one, one + 3, one + 4, one + 7, one + 8], dtype=torch.int32).view(torch.float32)
    counts = torch.zeros(5, dtype=torch.int64)
    masks = [reference.pack_mask(torch.ones(6) > 0)]
    reference.topk_count_([-weight], masks, one, one + 8, counts)
    assert counts.tolist() == [0, 6, 1, 2, 2]  # no NaN, kept, below; then [one, one + 4) and [one + 4, one + 8)
    weight[0] = NAN
    reference.topk_count_([weight], masks, one, one + 8, counts)
    assert counts.tolist() == [1, 12, 1, 4, 4]


def test_bits_are_packed_from_the_lowest():
    mask = torch.tensor([[True, False, False, True, False], [True, False, False, False, True]])
    assert reference.pack_mask(mask).tolist() == [0b00101001, 0b10]
    assert torch.equal(reference.unpack_mask(reference.pack_mask(mask), (2, 5)), mask)
    assert reference.pack_mask(torch.ones(0) > 0).shape == (0,)
