"""Bad arguments of `collapse`: one error each, which names the argument, what was expected and what came."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

import layercollapse as lc
from networks import Model, report_on

X = torch.randn(3, 4)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": True}, "tolerance: expected a number not below 0, got True"),
        ({"tolerance": "1e-3"}, "tolerance: expected a number not below 0, got '1e-3'"),
        ({"tolerance": float("nan")}, "tolerance: expected a number not below 0, got nan"),
        ({"tolerance": -1}, "tolerance: expected a number not below 0, got -1"),
        ({"partial": "yes"}, "partial: expected True or False, got 'yes'"),
        ({"mode": "refit"}, 'data: expected batches to fit layers on with mode="refit", got None'),
        ({"min_r2": 0.0}, r"min_r2: expected a share of the variance in \(0, 1\], got 0.0"),
        ({"min_r2": 1.1, "mode": "refit"}, r"min_r2: expected a share of the variance in \(0, 1\], got 1.1"),
        ({"min_r2": float("nan")}, "min_r2: expected a share of the variance .*, got nan"),
        ({"min_r2": "most"}, "min_r2: expected a share of the variance .*, got 'most'"),
        ({"min_r2": True}, "min_r2: expected a share of the variance .*, got True"),
        ({"report": {"1": 0.0}}, "report: expected an EntropyReport or None, got dict"),
        ({"data": "abc"}, "data: expected batches, got str"),
        ({"data": 5}, "data: expected batches, got int"),
        ({"data": []}, "data: expected at least one batch with a sample, got none"),
        ({"data": [X[:0]]}, "data: expected at least one batch with a sample, got none"),
        ({"data": [None]}, "data: expected batches that are a tensor, .* got NoneType"),
        ({"data": [("a", X)]}, "data: expected batches that are a tensor, .* got a tuple of str"),
        ({"data": [X[:, :2]]}, r"data: the model must run on every batch; \(3, 2\) float32 came"),
        ({"example_inputs": X[:0]}, r"example_inputs: expected at least one sample, got \(0, 4\) float32"),
        ({"example_inputs": X[0, :1]}, r"example_inputs: the model must run on them; \(1,\) float32 came"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(lc.LayerCollapseError, match=f"^{message}"):
        lc.collapse(network(), **{"example_inputs": X, **options})


def test_an_example_without_a_batch_is_taken_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.export is first shown two of it, which do not fit, and logged a traceback."""
    model, x = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(1)
    logged: list[logging.LogRecord] = []
    monkeypatch.setattr(logging.getLogger("torch._subclasses.fake_tensor"), "handle", logged.append)
    result = lc.collapse(model, x)
    torch.testing.assert_close(result.model(x), model(x))
    assert not logged


def test_errors() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(8, 4)
    report = report_on(model, x)
    other = report_on(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), x)
    with pytest.raises(lc.LayerCollapseError, match="mode: expected 'exact', 'repad' or 'refit', got 'fast'"):
        lc.collapse(model, x, report, mode="fast")
    with pytest.raises(lc.LayerCollapseError, match="tolerance"):
        lc.collapse(model, x, report, tolerance=-1)
    with pytest.raises(lc.LayerCollapseError, match=r"3 neurons of relu at '1', got 5"):
        lc.collapse(model, x, other)
    with pytest.raises(lc.LayerCollapseError, match="report: expected an EntropyReport"):
        lc.collapse(model, x, {"1": 0.0})
    with pytest.raises(lc.LayerCollapseError, match="data: expected at least one batch"):
        lc.collapse(model, x, report, data=[])
    model[0].weight.data[0, 0] = float("nan")
    with pytest.raises(lc.LayerCollapseError, match=r"NaN or infinity in '0.weight'"):
        lc.collapse(model, x, report)


class Masked(nn.Module):
    """A buffer of -inf, as attention masks are, and one that the batch norm needs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.register_buffer("mask", torch.tensor([0.0, 0.0, -torch.inf]))

    def forward(self, x):
        return (self.head(torch.relu(self.norm(x))) + self.mask).softmax(-1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_running_statistics_must_be_finite(bad: float) -> None:
    model, x = Masked().eval(), torch.randn(8, 4)
    assert lc.collapse(model, x, None).max_abs_error < 1e-6
    model.norm.running_var[1] = bad
    with pytest.raises(lc.LayerCollapseError, match=r"NaN or infinity in 'norm.running_var'"):
        lc.collapse(model, x, None)


def test_inputs_that_do_not_fit() -> None:
    nested = Model(lambda m, d: m.a(d["x"] + d["y"]), a=nn.Linear(4, 3))
    with pytest.raises(lc.LayerCollapseError, match="2 values nested in 1 arguments"):
        lc.collapse(nested, ({"x": torch.randn(2, 4), "y": torch.randn(2, 4)},), None)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    x = torch.randn(2, 4)
    for data, message in (
        ([torch.randn(2, 5)], r"data: the model must run on every batch; \(2, 5\)"),
        ([()], "data: the model must run on every batch; no tensor came"),
        (3, "data: expected batches, got int"),
    ):
        with pytest.raises(lc.LayerCollapseError, match=message):
            lc.collapse(model, x, None, data=data)
    assert lc.collapse(model, x, None, data={"input": x}).samples == 2
    assert lc.collapse(model, x, None, data=iter([x, x])).samples == 4
