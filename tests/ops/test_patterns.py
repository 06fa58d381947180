"""`sign_patterns` against a `Counter` of rows, and what is estimated beyond the capacity.

tests/kernels/test_gpu_on_cpu.py runs this file too, with Triton's interpreter and with the CUDA sources compiled for
the CPU.
"""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hashes import NAN, hash_of, on_gpu, values
from layercollapse import LayerCollapseError, ops
from layercollapse.entropy.layer import LayerEntropy
from layercollapse.ops import SignPatterns, sign_hashes, sign_patterns


@on_gpu
def test_counting_on_the_device_gives_the_same():
    x = torch.randn(4000, 11, generator=torch.Generator().manual_seed(0))
    for capacity in (64, 4096):
        states = [SignPatterns.empty(11, capacity=capacity, device=device) for device in ("cpu", "cuda")]
        for part in x.split(900):
            states = [sign_patterns(part.to(state.hashes.device), state=state) for state in states]
        assert torch.equal(states[0].to_tensor(), states[1].to_tensor().cpu())
        assert states[0].entropy == states[1].entropy
        merged = states[0].merge(states[1])
        assert merged.hashes.device.type == "cpu"
        assert merged.rows == 8000
    with pytest.raises(LayerCollapseError, match="state: expected one of 11 channels on cpu, got one of 11 on cuda"):
        sign_patterns(x, state=states[1])


# --- counting ---------------------------------------------------------------------------------------------


def counted(patterns):
    return Counter(dict(zip(patterns.hashes.tolist(), patterns.counts.tolist(), strict=True)))


def bits(counts):
    total = sum(counts)
    return -sum(c / total * math.log2(c / total) for c in counts)


HAND = [  # rows of signs (1: positive), distinct patterns, entropy
    ([[1, 0], [1, 0], [1, 0], [1, 0]], 1, 0.0),
    ([[1, 0], [0, 1]], 2, 1.0),
    ([[0, 0], [0, 1], [1, 0], [1, 1]], 4, 2.0),
    ([[1], [1], [1], [0]], 2, 2 - 0.75 * math.log2(3)),
]


@pytest.mark.parametrize(("rows", "distinct", "entropy"), HAND)
def test_tables_made_by_hand(rows, distinct, entropy):
    patterns = sign_patterns(2.0 * torch.tensor(rows) - 1)
    assert (patterns.rows, patterns.channels, patterns.distinct) == (len(rows), len(rows[0]), distinct)
    assert patterns.entropy == pytest.approx(entropy, abs=1e-12)
    assert patterns.entropy_bounds == pytest.approx((entropy, entropy), abs=1e-12)
    assert patterns.exact
    assert patterns.error == patterns.entropy_error == 0


def test_a_nan_and_a_zero_are_not_positive():
    x = torch.tensor([[NAN, 1.0], [-NAN, 1.0], [0.0, 1.0], [-0.0, 1.0], [-1.0, 1.0]])
    assert sign_patterns(x).distinct == 1


def test_every_position_of_an_image_is_a_row():
    x = torch.tensor([[[[1.0, -1.0]], [[1.0, 1.0]]]])  # (1, 2, 1, 2)
    patterns = sign_patterns(x)
    assert (patterns.rows, patterns.distinct) == (2, 2)
    assert counted(patterns) == Counter({hash_of([1, 1]): 1, hash_of([0, 1]): 1})


def test_nothing_was_seen():
    patterns = sign_patterns(torch.empty(0, 3))
    assert (patterns.rows, patterns.distinct, patterns.entropy, patterns.exact) == (0, 0, 0.0, True)
    one = sign_patterns(torch.empty(4, 0))
    assert (one.rows, one.distinct, one.entropy) == (4, 1, 0.0)


sizes = st.lists(st.integers(0, 6), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 6), sizes, st.permutations(range(40)), st.sampled_from([16, 24, 64]))
def test_counts_are_those_of_a_counter(seed, channels, cuts, order, capacity):
    x = torch.randn(40, channels, generator=torch.Generator().manual_seed(seed))
    truth = Counter(hash_of(row) for row in (x > 0).tolist())
    kept = Counter({key: truth[key] for key in sorted(truth)[:capacity]})
    empty = SignPatterns.empty(channels, capacity=capacity)
    whole = sign_patterns(x, state=empty)
    streamed = empty
    for part in x[torch.tensor(order)].split([*cuts, 40 - sum(cuts)]):
        streamed = sign_patterns(part, state=streamed)
    halves = sign_patterns(x[:13], state=empty).merge(sign_patterns(x[13:], state=empty))
    for patterns in (whole, streamed, halves, SignPatterns.from_tensor(whole.to_tensor())):
        assert counted(patterns) == kept
        assert patterns.rows == 40
        assert patterns.exact == (len(truth) <= capacity)
        assert patterns.hashes.tolist() == sorted(kept)
    low, high = whole.entropy_bounds
    assert low - 1e-9 <= bits(truth.values()) <= high + 1e-9
    assert low <= whole.entropy <= high
    if whole.exact:
        assert whole.distinct == len(truth)
        assert whole.entropy_bounds == (whole.entropy, whole.entropy)
        assert whole.entropy == pytest.approx(bits(truth.values()), abs=1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 60), st.floats(0, 1))
def test_entropy_lies_between_the_neurons_largest_and_their_sum(seed, channels, rows, shared):
    """max H(neuron) ≤ H(pattern) ≤ Σ H(neuron), and 2^H(pattern) ≤ distinct; zeros count with the negative."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-1, 2, (rows, channels), generator=generator).float()
    x = torch.where(torch.rand(rows, channels, generator=generator) < shared, x[:, :1], x)
    patterns = sign_patterns(x)
    neurons = LayerEntropy("site", "relu", ops.sign_histogram(x), zeros="off").entropy
    assert float(neurons.max()) - 1e-9 <= patterns.entropy <= float(neurons.sum()) + 1e-9
    assert patterns.entropy <= math.log2(patterns.distinct) + 1e-9


def test_independent_neurons_reach_the_sum_and_copies_the_largest():
    every = torch.tensor([[i >> b & 1 for b in range(6)] for i in range(64)]) - 0.5
    assert sign_patterns(every).entropy == 6
    assert sign_patterns(every[:, :1].expand(64, 6)).entropy == 1


@pytest.mark.parametrize(("distinct", "capacity"), [(5_000, 512), (200_000, 4096)])
def test_beyond_the_capacity_figures_are_estimates_within_their_error(distinct, capacity):
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(distinct, 64, generator=generator)
    rows = torch.cat([torch.arange(distinct), torch.randint(distinct, (distinct,), generator=generator)])
    patterns = SignPatterns.empty(64, capacity=capacity)
    for part in rows.split(20_011):
        patterns = sign_patterns(table[part], state=patterns)
    assert not patterns.exact
    assert patterns.rows == 2 * distinct
    assert len(patterns.hashes) == capacity
    assert patterns.error == pytest.approx(1 / math.sqrt(capacity - 2))
    assert abs(patterns.distinct / distinct - 1) < 3 * patterns.error
    truth = bits(torch.bincount(rows).tolist())
    low, high = patterns.entropy_bounds
    assert low <= truth <= high
    assert 0 < patterns.entropy_error < 0.05
    assert abs(patterns.entropy - truth) < 3 * patterns.entropy_error


def test_a_small_capacity_keeps_complete_counts():
    x = torch.randn(3000, 9, generator=torch.Generator().manual_seed(2))
    truth = Counter(hash_of(row) for row in (x > 0).tolist())
    patterns = SignPatterns.empty(9, capacity=50)
    for part in x.split(7):
        patterns = sign_patterns(part, state=patterns)
    assert len(truth) > 400
    assert counted(patterns) == Counter({key: truth[key] for key in sorted(truth)[:50]})


def test_merging_takes_the_smaller_capacity():
    x = torch.randn(500, 9, generator=torch.Generator().manual_seed(3))
    small = sign_patterns(x[:200], state=SignPatterns.empty(9, capacity=32))
    large = sign_patterns(x[200:], state=SignPatterns.empty(9, capacity=300))
    expected = sign_patterns(x, state=SignPatterns.empty(9, capacity=32))
    for merged in (small.merge(large), large.merge(small)):
        assert torch.equal(merged.hashes, expected.hashes)
        assert torch.equal(merged.counts, expected.counts)
        assert (merged.rows, merged.capacity) == (500, 32)


def test_states_are_saved_and_gathered_as_one_tensor(tmp_path):
    states = [sign_patterns(values((50, 5), torch.float32, seed)) for seed in range(3)]
    gathered = torch.stack([state.to_tensor() for state in states])  # as all_gather gives them
    save_file({"patterns": gathered}, tmp_path / "patterns.safetensors")
    first, *others = map(SignPatterns.from_tensor, load_file(tmp_path / "patterns.safetensors")["patterns"])
    for other in others:
        first = first.merge(other)
    expected = sign_patterns(torch.cat([values((50, 5), torch.float32, seed) for seed in range(3)]))
    assert counted(first) == counted(expected)
    assert (first.rows, first.channels, first.capacity) == (150, 5, expected.capacity)


# --- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sign_hashes([1.0]), "x: expected a tensor, got list"),
        (lambda: sign_hashes(torch.ones(3)), "channel_dim: expected a dimension of x, which has 1, got 1"),
        (lambda: sign_patterns(torch.ones(2, 3, dtype=torch.int32)), "x: expected .*float32.*got int32"),
        (lambda: sign_patterns(torch.ones(2, 3), state=3), "state: expected a SignPatterns or None, got int"),
        (lambda: sign_patterns(torch.ones(2, 3), state=SignPatterns.empty(4)), "state: .*3 channels.*one of 4"),
        (lambda: SignPatterns.empty(3, capacity=3), "capacity: expected an int of at least 16, got 3"),
        (lambda: SignPatterns.empty(-1), "channels: expected an int of at least 0, got -1"),
        (lambda: SignPatterns.empty(3).add(torch.ones(3)), "hashes: expected an int64 tensor on cpu, got float32"),
        (lambda: SignPatterns.empty(3).merge(SignPatterns.empty(4)), "other: .*3 channels, got one of 4"),
        (lambda: SignPatterns.from_tensor(torch.ones(9)), r"tensor: expected what to_tensor\(\) gave, got float32"),
        (lambda: SignPatterns.from_tensor(torch.ones(9).long()), r"tensor: expected what to_tensor\(\) gave"),
        (
            lambda: SignPatterns.of(torch.tensor([2, 1]), torch.tensor([1, 1]), 2, 1, 16),
            "hashes, counts: expected ascending",
        ),
        (lambda: SignPatterns.of(torch.tensor([2]), torch.tensor([1]), 2, 1, 16), "rows: .*counts, 1, got 2"),
        (  # as int64 the sum is 0
            lambda: SignPatterns.of(torch.arange(16), torch.full((16,), 2**60), 0, 1, 16),
            "rows: expected those of the counts, 18446744073709551616, got 0",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(LayerCollapseError, match=message):
        call()
