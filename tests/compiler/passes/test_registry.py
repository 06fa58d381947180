"""The loop over the passes: their order, what they report, and who is named where one fails."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layercollapse.compiler.ir.graph import Net
from layercollapse.compiler.passes.context import Group, PassContext
from layercollapse.compiler.passes.registry import PASSES, Pass, run_passes
from layercollapse.errors import LayerCollapseError
from networks import lowered


def net() -> Net:
    return lowered(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)), torch.randn(5, 4))


def counting(name: str, times: int, calls: list[str], group: Group | None = None) -> Pass:
    def run(net: Net, context: PassContext) -> bool:
        calls.append(name)
        return calls.count(name) <= times

    run.__name__ = name
    return Pass(run, () if group is None else (group,))


def test_after_every_change_the_first_is_next() -> None:
    calls: list[str] = []
    passes = [counting("a", 1, calls), counting("b", 2, calls, Group.TRIM), counting("c", 0, calls, Group.POOLING)]
    context = PassContext()
    run_passes(net(), context, passes)
    assert context.applied == {Group.TRIM}
    assert "".join(calls) == "a" + "ab" + "ab" + "abc"


def test_all_passes_end_and_say_who_acted() -> None:
    def applied(some: Net, omitted: Group | None = None) -> set[Group]:
        context = PassContext(omitted=lambda name: {omitted} - {None})
        run_passes(some, context)
        return context.applied

    some = net()
    assert applied(some) == {Group.SEQUENCE}  # two layers in sequence are one
    assert len(some.ops) == 1
    assert applied(some) == set()
    kept = net()
    assert applied(kept, Group.SEQUENCE) == set()
    assert len(kept.ops) == 2  # the norm costs nothing to fold


def test_what_nothing_reads_is_gone_before_the_first() -> None:
    some, seen = net(), []
    (output,) = (node for node in some.graph.nodes if node.op == "output")
    output.args = (next(iter(some.graph.nodes)),)
    run_passes(some, PassContext(), [Pass(lambda net, context: bool(seen.append(len(net.ops))))])
    assert seen == [0]


def test_a_pass_that_fails_is_named_and_our_own_errors_are_not_wrapped() -> None:
    def breaks(net: Net, context: PassContext) -> bool:
        raise error

    for error in (LayerCollapseError("model: no"), MemoryError("all of it")):
        with pytest.raises(type(error), match=str(error)):
            run_passes(net(), PassContext(), [Pass(breaks)])
    error = KeyError("x")
    with pytest.raises(RuntimeError, match="collapse: the pass breaks failed: KeyError: 'x'"):
        run_passes(net(), PassContext(), [Pass(breaks)])


def test_every_pass_has_a_name_of_its_own_and_costs_time_only_in_a_group() -> None:
    names = [one.name for one in PASSES]
    assert len(set(names)) == len(names)
    assert {group for one in PASSES for group in one.groups} == set(Group) - {Group.RECTIFIERS}
