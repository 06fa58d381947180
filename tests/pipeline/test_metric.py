"""Accuracies as users return them: every kind of number, in percent or as a fraction."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from layercollapse.errors import LayerCollapseError
from layercollapse.pipeline.metric import Metric, number

NUMBERS = [
    50,
    50.0,
    np.float32(50),
    np.int64(50),
    np.array(50.0),
    np.array([[50]]),
    torch.tensor(50),
    torch.tensor([[50.0]], dtype=torch.bfloat16),
    torch.tensor(50.0, requires_grad=True),
    Fraction(100, 2),
    Decimal("50.0"),
]
OTHERS = [
    True,
    np.bool_(True),
    torch.tensor(True),
    "50",
    None,
    float("nan"),
    float("inf"),
    np.float32("nan"),
    Decimal("nan"),
    Decimal("sNaN"),
    10**400,
    50j,
    torch.tensor(50j),
    torch.tensor([50.0, 60.0]),
    np.array([]),
    torch.empty(1, device="meta"),
    [50],
    {"accuracy": 50},
]


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_numbers(value):
    assert number(value, "evaluate") == 50
    assert type(number(value, "evaluate")) is float
    assert Metric(lambda model: value, "evaluate")(None) == 50


@pytest.mark.parametrize("value", OTHERS, ids=repr)
def test_what_is_no_number(value):
    with pytest.raises(LayerCollapseError, match="max_drop: expected a finite number, got "):
        number(value, "max_drop")
    with pytest.raises(LayerCollapseError, match="test: expected a function that returns an accuracy in percent, got"):
        Metric(lambda model: value, "test")(None)


def test_a_first_number_up_to_one_may_be_either():
    for value in (0, 0.55, 1.0, torch.tensor(1)):
        with pytest.raises(LayerCollapseError, match=r"evaluate: .* in percent, .* unit='fraction' or unit='percent'"):
            Metric(lambda model, value=value: value, "evaluate")(None)
        assert Metric(lambda model, value=value: value, "evaluate", "percent")(None) == value
        assert Metric(lambda model, value=value: value, "evaluate", "fraction")(None) == 100 * value
    values = iter([1.1, 0.8, 0])  # the first is no fraction, so the others are none
    metric = Metric(lambda model: next(values), "evaluate")
    assert [metric(None) for _ in range(3)] == [1.1, 0.8, 0]


@pytest.mark.parametrize(("unit", "value"), [("fraction", 55), ("fraction", -0.1), ("percent", 101), (None, -2.3)])
def test_what_is_no_accuracy(unit, value):
    with pytest.raises(LayerCollapseError, match=r"evaluate: expected a function that returns an accuracy .*, got"):
        Metric(lambda model: value, "evaluate", unit)(None)
