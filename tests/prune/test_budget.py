"""Budgets: the formula by hand, then properties that hold for any layers."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layercollapse import LayerCollapseError
from layercollapse.prune.budget import RULES, LayerState, allocate, register


def state(name, entropy, mean_abs=1.0, kept=100, *, floor=0, active=None, numel=None):
    return LayerState(name, entropy, entropy if active is None else active, mean_abs, kept, numel or kept, floor)


def by_hand(irrelevance, total):
    """The formula of section 4, as written there."""
    relevance = [sum(irrelevance) / i for i in irrelevance]
    parts = [math.exp(r - max(relevance)) for r in relevance]
    return [total * part / sum(parts) for part in parts]


def test_nepenthe_by_hand():
    # I = 0.2, 0.3, 0.5, so R = 5, 10/3, 2. Of 300 kept half goes: 150/(1 + e^(-5/3) + e^-3) = 121.1 of "a", which has
    # 100 only; "b" and "c" share the other 50 with R = 8/3, 8/5: 50/(1 + e^(-16/15)) = 37.2 and 12.8.
    layers = [state("a", 0.5, 0.4), state("b", 0.3), state("c", 1.0, 0.5)]
    assert by_hand([0.2, 0.3, 0.5], 150) == pytest.approx([121.0983, 22.8725, 6.0291], abs=1e-4)
    assert by_hand([0.3, 0.5], 50) == pytest.approx([37.1982, 12.8018], abs=1e-4)
    assert allocate(layers, 0.5) == {"a": 100, "b": 37, "c": 13}


def test_nepenthe_without_overflow():
    layers = [state("a", 0.2, kept=1000), state("b", 0.3, kept=1000), state("c", 0.5, kept=1000)]
    parts = by_hand([0.2, 0.3, 0.5], 300)
    assert parts == pytest.approx([242.1967, 45.7450, 12.0583], abs=1e-4)
    assert allocate(layers, 0.1) == {"a": 242, "b": 46, "c": 12}


def test_layers_without_entropy_or_weights_take_no_part():
    layers = [state("zero", 0.0, kept=500), state("none", 0.5, kept=0), state("one", 0.5), state("two", 0.5)]
    assert allocate(layers, 0.5) == {"zero": 0, "none": 0, "one": 50, "two": 50}


@pytest.mark.parametrize("rule", ["nepenthe", "egp"])
def test_nothing_to_do_when_every_entropy_is_zero(rule):
    assert allocate([state("a", 0), state("b", 0)], 1.0, rule) == {"a": 0, "b": 0}
    assert allocate([], 0.5, rule) == {}


def test_egp_uses_the_active_neurons():
    layers = [state("a", 0.1, active=0.9), state("b", 0.2, active=0.3)]
    assert allocate(layers, 60, "nepenthe")["a"] > 30 > allocate(layers, 60, "egp")["a"]


def test_uniform_by_hand():
    layers = [state("a", 0, kept=100), state("b", 1, kept=50), state("c", 1, kept=51, floor=50)]
    assert allocate(layers, 0.5, "uniform") == {"a": 66, "b": 33, "c": 1}  # 100.5 rounds to 100


def test_ties_go_to_the_earlier_layer():
    layers = [state(name, 0.5) for name in "abc"]
    assert list(allocate(layers, 100).values()) == [34, 33, 33]
    assert list(allocate(layers, 2).values()) == [1, 1, 0]


def test_layers_of_magnitude_zero_go_first():
    layers = [state("a", 0.5), state("b", 0.5, mean_abs=0.0), state("c", 0.1, mean_abs=0.0)]
    assert allocate(layers, 0.5) == {"a": 0, "b": 75, "c": 75}
    assert allocate(layers, 250) == {"a": 50, "b": 100, "c": 100}


def test_more_than_may_go_prunes_down_to_the_floors():
    layers = [state("a", 0.5, floor=7), state("b", 0.9, floor=200), state("c", 0.0)]
    for amount in (1.0, 10**12):
        assert allocate(layers, amount) == {"a": 93, "b": 0, "c": 0}


def test_extreme_magnitudes_do_not_overflow():
    for scale in (1e-300, 1e-30, 1, 1e30, 1e300):
        layers = [state("a", 0.2, scale, kept=1000), state("b", 0.3, scale, kept=1000)]
        assert allocate(layers, 0.1) == allocate([state("a", 0.2, kept=1000), state("b", 0.3, kept=1000)], 0.1)
    layers = [state("a", 1e-300, 1e-300), state("b", 1.0, 1e300), state("c", 1e-320, 1e300)]
    assert sum(allocate(layers, 0.5).values()) == 150


LAYERS = st.lists(
    st.tuples(
        st.floats(0, 1.6),
        st.floats(0, 1e300),
        st.integers(0, 10**9),
        st.integers(0, 10**9),
    ),
    max_size=12,
).map(lambda rows: [state(f"l{i}", h, m, kept, floor=floor) for i, (h, m, kept, floor) in enumerate(rows)])


@given(LAYERS, st.floats(0, 1, exclude_min=True) | st.integers(1, 10**10), st.sampled_from(sorted(RULES)))
def test_budgets_sum_exactly_and_keep_the_floors(layers, amount, rule):
    counts = allocate(layers, amount, rule)
    part = [x for x in layers if x.available and (rule == "uniform" or x.entropy > 0)]
    may_go = sum(x.available for x in part)
    wanted = amount if isinstance(amount, int) else round(amount * sum(x.kept for x in part))
    assert list(counts) == [x.name for x in layers]
    assert sum(counts.values()) == min(wanted, may_go)
    assert all(type(counts[x.name]) is int and 0 <= counts[x.name] <= x.available for x in layers)
    assert all(counts[x.name] == 0 for x in layers if x not in part)
    assert counts == allocate(layers, amount, rule)


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=8), st.floats(0.001, 1))
def test_lower_entropy_loses_more(entropies, amount):
    layers = [state(f"l{i}", h, kept=10_000) for i, h in enumerate(sorted(entropies))]
    counts = list(allocate(layers, amount).values())
    assert all(a >= b - 1 for a, b in itertools.pairwise(counts))


def test_a_rule_of_the_user():
    layers = [state("a", 0.5), state("b", 0.5, floor=90)]
    assert allocate(layers, 0.5, lambda layers, amount: {"a": np.int64(3)}) == {"a": 3, "b": 0}
    assert type(allocate(layers, 0.5, lambda layers, amount: {"a": np.int64(3)})["a"]) is int


def test_a_rule_is_registered_in_one_line():
    try:
        register("first")(lambda layers, amount: {layers[0].name: 1})
        assert allocate([state("a", 0.5), state("b", 0.5)], 0.5, "first") == {"a": 1, "b": 0}
    finally:
        del RULES["first"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"c": 1}, "unknown c"),
        ({1: 1}, "unknown 1"),
        ({"a": -1}, "expected between 0 and 100 weights of 'a'.*got -1"),
        ({"a": 101}, "expected between 0 and 100 weights of 'a'.*got 101"),
        ({"b": 11}, "expected between 0 and 10 weights of 'b'.*floor 90.*got 11"),
        ({"a": 1.0}, "expected an int for 'a', got 1.0"),
        ({"a": True}, "expected an int for 'a', got True"),
        ([1, 2], "expected a dict of counts by layer, got list"),
        (None, "got NoneType"),
    ],
)
def test_bad_answers_of_a_rule(answer, message):
    with pytest.raises(LayerCollapseError, match=message):
        allocate([state("a", 0.5), state("b", 0.5, floor=90)], 0.5, lambda layers, amount: answer)


@pytest.mark.parametrize("amount", [0, -1, 0.0, -0.5, 1.5, math.nan, math.inf, True, "0.5", None])
def test_bad_amounts(amount):
    with pytest.raises(LayerCollapseError, match="amount: expected"):
        allocate([state("a", 0.5)], amount)


def test_bad_rules_and_layers():
    with pytest.raises(LayerCollapseError, match="rule: expected nepenthe, egp, uniform, global or a function"):
        allocate([state("a", 0.5)], 0.5, "magnitude")
    with pytest.raises(LayerCollapseError, match="'global' ranks the weights"):
        allocate([state("a", 0.5)], 0.5, "global")
    with pytest.raises(LayerCollapseError, match="rule: expected a name or a function, got int"):
        allocate([state("a", 0.5)], 0.5, 3)
    with pytest.raises(LayerCollapseError, match="unique names, got a, a"):
        allocate([state("a", 0.5), state("a", 0.5)], 0.5)
    for bad in (math.nan, math.inf, -1.0, None):
        with pytest.raises(LayerCollapseError, match="entropy of 'a'"):
            state("a", bad)
        with pytest.raises(LayerCollapseError, match="mean_abs of 'a'"):
            state("a", 0.5, mean_abs=bad)
    with pytest.raises(LayerCollapseError, match="kept=5, numel=4"):
        LayerState("a", 0.5, 0.5, 1.0, 5, 4)
