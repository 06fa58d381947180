"""The range of outputs over samples, by hand."""

import pytest
import torch

from layercollapse._util.spread import Spread

EPS = torch.finfo(torch.float32).eps


@pytest.mark.parametrize(
    ("batches", "spread", "scale"),
    [
        ([[[1.0, 5.0], [3.0, 4.0]]], 2.0, 5.0),
        ([[[1.0, 5.0]], [[3.0, 4.0]]], 2.0, 5.0),  # in batches of one
        ([[[1.0, 5.0]]], None, 5.0),  # one sample
        ([[[1.0, 5.0]], [[1.0, 5.0, 9.0]]], None, 9.0),  # two of different sizes
        ([[[1.0, 5.0]], [[1.0]], [[4.0]]], 3.0, 5.0),
        ([[[7.0, -7.0], [7.0, -7.0]]], 0.0, 7.0),
        ([[[1.0, float("nan")], [2.0, float("inf")]]], 1.0, 2.0),
        ([[[float("nan")], [float("-inf")]]], 0.0, 0.0),
        ([[1.0, 4.0]], 3.0, 4.0),
        ([2.0, -1.0], 3.0, 2.0),  # scalars: a sample each
        ([[[]], [[]]], None, 0.0),
    ],
)
def test_spread_by_hand(batches, spread, scale):
    made = Spread()
    for batch in batches:
        made.add(torch.tensor(batch))
    assert (made.value, made.scale) == (spread, scale)
    assert made.rounding == 64 * EPS * scale
