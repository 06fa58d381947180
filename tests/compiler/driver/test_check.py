"""Bad arguments of `collapse`: one error each, which names the argument, what was expected and what came."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

import layercollapse as lc

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
