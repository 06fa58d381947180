"""What a result answers from what it holds, by hand."""

from __future__ import annotations

from torch import nn

import layercollapse as lc
from layercollapse.compiler.analysis.cost import Summary
from layercollapse.compiler.analysis.obstacles import Kept
from layercollapse.compiler.driver.result import SiteResult
from layercollapse.compiler.tuning.variants import Variant


def result(latency: dict[Variant, float]) -> lc.CollapseResult:
    sites = [("a", "collapsed", "exact"), ("b", "partial", "certified"), ("c", "kept", ""), ("d", "collapsed", "exact")]
    return lc.CollapseResult(
        model=nn.Identity(),
        sites=tuple(SiteResult(name, "relu", status, sure, "because", 8, 0) for name, status, sure in sites),
        kept_layers=(Kept(("x", "y"), "the border"), Kept(("z",), "rounding")),
        before=Summary(5, 1000, 20_000),
        after=Summary(3, 500, 10_000),
        max_abs_error=0.0,
        same_predictions=1,
        samples=1,
        example_inputs=None,
        form=Variant.CHOSEN,
        latency=latency,
    )


def test_names_of_sites_and_layers() -> None:
    made = result({})
    assert made.collapsed == ("a", "d")
    assert made.kept == {"x → y": "the border", "z": "rounding"}


def test_times_are_those_of_the_input_and_of_its_form() -> None:
    timed = result({Variant.INPUT: 4.0, Variant.ALL: 3.0, Variant.CHOSEN: 2.0})
    assert (timed.latency_before, timed.latency_after) == (4.0, 2.0)
    assert (result({}).latency_before, result({}).latency_after) == (None, None)


def test_the_lines_begin_with_the_outcome() -> None:
    lines = result({}).explain().splitlines()
    assert lines[0] == "2 of 4 rectifiers collapsed, 1 with fewer neurons; depth 5 → 3"
    assert lines[1] == "parameters 1,000 → 500; multiply-accumulates on the example inputs 20,000 → 10,000"
    assert lines[-2:] == ["x → y: kept in sequence: the border", "z: rounding"]
