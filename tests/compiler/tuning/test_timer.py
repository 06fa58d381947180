"""The cost model: times that are measured, and what they decide."""

from __future__ import annotations

import pytest

import layercollapse as lc
from layercollapse.compiler.tuning.variants import Variant
from networks import shrinking


@pytest.mark.timed
def test_the_times_are_measured() -> None:
    model, x = shrinking()
    result = lc.collapse(model, x, None)
    assert {Variant.INPUT, Variant.ALL} <= set(result.latency)
    assert all(0 < time < 1000 for time in result.latency.values())
