"""`layercollapse_core` on NumPy arrays: bad input is named in the package's own error, and nothing changes."""

import layercollapse_core as core
import numpy as np
import pytest

from layercollapse import LayerCollapseError

pytest.importorskip("layercollapse_core._core")

X = np.array([[1, -2, 0], [3, np.nan, 4]], dtype=np.float32)
counts = np.zeros((3, 4), dtype=np.int64)


def weight():
    return np.array([3, -1, 0.5, -2], dtype=np.float32)


def mask(*, writeable=True):
    array = np.array([15], dtype=np.uint8)
    array.flags.writeable = writeable
    return array


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *[({"channel_dim": dim}, "channel_dim: expected a dimension of x, which has 2") for dim in (1.0, "a", True, 2)],
        *[({"upper": upper}, "upper: expected a float32 above 0") for upper in ("6", True, np.ones(2), 10**400, 1e-46)],
        *[({"threads": threads}, "threads: expected an int of at least 1 or None") for threads in (0, -5, 1.5, "a")],
        ({"out": [1]}, r"out: expected a writeable contiguous int64 array of shape \(3, 4\), got list"),
        ({"x": counts.view(np.float32)[:, ::3], "out": counts}, "out: expected memory of its own, got some that x cov"),
    ],
)
def test_bad_activations(arguments, message):
    with pytest.raises(LayerCollapseError, match=message):
        core.sign_histogram(**{"x": X, **arguments})
    assert not counts.any()
    if arguments.keys() & {"channel_dim", "threads"}:
        with pytest.raises(LayerCollapseError, match=message):
            core.sign_hashes(X, **arguments)


@pytest.mark.parametrize(
    ("weights", "masks", "k", "message"),
    [
        (None, [mask()], [1], "weights: expected a list, got NoneType"),
        ([weight()], [[15]], [1], r"masks\[0\]: expected a contiguous uint8 array of shape \(1,\), got list"),
        ([weight()], (mask() for _ in "a"), [1], "masks: expected a list, got generator"),
        ([weight()], [mask()], 1, "k: expected a list, got int"),
        *[([weight()], [mask()], [k], r"k\[0\]: expected an int of at least 0") for k in (-1, 1.0, True, "a", 2**63)],
        ([weight()], [mask(writeable=False)], [1], r"masks\[0\]: expected a writeable array"),
    ],
)
def test_bad_weights(weights, masks, k, message):
    with pytest.raises(LayerCollapseError, match=message):
        core.masked_topk_(weights, masks, k)
    assert weights is None or weights[0].tolist() == [3, -1, 0.5, -2]


def test_masks_that_are_only_read_need_not_be_writeable():
    array, bits = weight(), mask(writeable=False)
    core.apply_mask_([array], [bits])
    assert array.tolist() == [3, -1, 0.5, -2]


def test_numbers_of_numpy():
    some = core.sign_histogram(X, channel_dim=np.int64(-1), upper=np.float32(3), threads=np.int32(2))
    assert some.tolist() == [[0, 0, 2, 0, 1], [1, 0, 0, 1, 0], [0, 1, 1, 0, 1]]
    assert core.masked_topk_([weight()], [mask()], np.array([2])).tolist() == [1]
