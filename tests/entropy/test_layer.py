"""The entropy and the state of neurons from their counts: a table by hand first."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layercollapse import LayerCollapseError
from layercollapse.entropy.layer import STATES
from layercollapse.ops import SignPatterns
from probed import layer

Q = 2 - 0.75 * math.log2(3)  # H(1/4) in bits


# negative, zero, positive, nan [, at the upper bend] -> entropy by zeros=ignore, off, on; state
TABLE = [
    ([4, 0, 4, 0], (1, 1, 1), "mixed"),
    ([2, 0, 6, 0], (Q, Q, Q), "mixed"),
    ([1, 4, 3, 0], (Q, 0.9544340029249649, 0.5435644431995964), "mixed"),
    ([8, 0, 0, 0], (0, 0, 0), "off"),
    ([0, 0, 8, 0], (0, 0, 0), "on"),
    ([0, 2, 6, 0], (0, Q, 0), "on"),
    ([6, 2, 0, 0], (0, 0, Q), "off"),
    ([0, 8, 0, 0], (0, 0, 0), "off"),
    ([0, 0, 0, 0], (0, 0, 0), "off"),
    ([0, 0, 8, 0, 0], (0, 0, 0), "on"),
    ([0, 0, 8, 0, 8], (0, 0, 0), "saturated"),
    ([0, 0, 8, 0, 6], (Q, Q, Q), "mixed"),
    ([4, 0, 4, 0, 4], (1, 1, 1), "mixed"),
    ([2, 0, 4, 0, 2], (math.log2(3), math.log2(3), math.log2(3)), "mixed"),
    ([8, 0, 0, 0, 0], (0, 0, 0), "off"),
    ([0, 2, 6, 0, 0], (0, Q, 0), "on"),
    ([0, 2, 6, 0, 6], (Q, Q, Q), "mixed"),  # 0 and 6 come out: zeros are not in the saturated piece
]


@pytest.mark.parametrize(("row", "entropies", "state"), TABLE)
def test_table(row, entropies, state):
    for zeros, expected in zip(("ignore", "off", "on"), entropies, strict=True):
        entropy = layer([row], zeros=zeros).entropy
        assert entropy.dtype == torch.float64
        assert entropy.item() == pytest.approx(expected, abs=1e-12)
        assert (entropy.item() == 0) == (expected == 0)
        assert layer([row], zeros=zeros).count(state) == 1
    assert STATES[layer([row]).states.item()] == state


def test_layer_summaries():
    it = layer([[4, 0, 4, 0], [8, 0, 0, 0], [0, 0, 8, 0]])
    assert (it.mean, it.mean_over("active"), it.samples, it.neurons, it.mixed) == (pytest.approx(1 / 3), 1, 8, 3, 1)
    assert layer([[4, 0, 4, 0], [8, 0, 0, 0]], average="active").mean == 1
    assert not it.collapsible
    assert layer([[8, 0, 0, 0], [0, 0, 8, 0]]).collapsible
    assert layer([[8, 0, 0, 0]]).mean_over("active") == 0
    assert not layer([[0, 0, 0, 0]]).collapsible  # nothing seen


@given(st.lists(st.integers(0, 2**61), min_size=3, max_size=3), st.sampled_from(["ignore", "off", "on"]))
def test_entropy_is_zero_exactly_in_one_piece_and_never_above_one_bit(row, zeros):
    it = layer([[*row, 0]], zeros=zeros)
    entropy = it.entropy.item()
    assert 0 <= entropy <= 1
    if zeros == "ignore":
        assert (entropy > 0) == (it.mixed == 1) == (row[0] > 0 and row[2] > 0)


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4))
def test_a_bounded_neuron_is_linear_exactly_when_its_outputs_are(numbers):
    below, zero, between, above = numbers
    z = torch.tensor([-1.0] * below + [0.0] * zero + [2.0] * between + [7.0] * above)
    it = layer([[below, zero, between + above, 0, above]], kind="relu6")
    state = STATES[it.states.item()]
    y = z.clamp(0, 6)
    linear = {"off": torch.zeros_like(z), "on": z, "saturated": torch.full_like(z, 6.0)}
    assert (it.entropy.item() == 0) == (state != "mixed")
    if state == "mixed":
        assert not any(torch.equal(candidate, y) for candidate in linear.values())
    else:
        assert torch.equal(linear[state], y)


def test_patterns_of_other_neurons():
    with pytest.raises(LayerCollapseError, match="patterns of 'relu': expected those of 3 neurons, got 2"):
        layer([[1, 0, 1, 0]] * 3, patterns=SignPatterns.empty(2))
