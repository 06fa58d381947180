"""What a result says of itself in words."""

from __future__ import annotations

import torch
from torch import nn

import layercollapse as lc
from layercollapse.compiler.tuning.variants import Variant
from networks import shrinking


def test_more_parameters_say_why() -> None:
    torch.manual_seed(0)

    class Twice(nn.Module):
        """A layer whose calls fold apart: the norm goes into one."""

        def __init__(self) -> None:
            super().__init__()
            self.twice, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)

        def forward(self, x):
            return self.twice(torch.relu(self.norm(self.twice(torch.relu(x)))))

    model, x = Twice().eval(), torch.randn(3, 6)
    model.norm.running_mean.uniform_()
    result = lc.collapse(model, x, None, cost="macs")
    assert (result.before.parameters, result.after.parameters) == (54, 84)
    outcome, sizes, why, *sites = result.explain().splitlines()
    assert outcome == "0 of 2 rectifiers collapsed; depth 2 → 2"
    assert sizes.startswith("parameters 54 → 84; multiply-accumulates on the example inputs ")
    assert why == "more parameters: twice: called more than once, and every call has weights of its own now"
    assert [line.split()[0] for line in sites if " kept " in line] == ["forward", "forward#2"]
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.AvgPool2d(2))
    result = lc.collapse(model, torch.randn(1, 1, 9, 9), None, cost="macs")
    assert "more parameters: a merged layer can have more weights and less work" in result.explain()
    assert "more parameters" not in lc.collapse(nn.Linear(2, 2), torch.randn(1, 2), None).explain()


def test_what_is_slower_than_the_input_is_said() -> None:
    model, x = shrinking()
    result = lc.collapse(model, x, None)
    for before, after, text in (
        (1.0, 1.02, "no faster: a difference below 3% is within the noise"),
        (1.0, 1.5, "slower; no other way to write it was faster"),
    ):
        timed = {Variant.INPUT: before, result.form: after, "another": 7.0}
        said = lc.CollapseResult(**{**vars(result), "latency": timed}).explain()
        assert text in said
        assert "also timed: another: 7.000 ms" in said
