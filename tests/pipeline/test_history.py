"""The steps as a strategy is told of them, and which of them is chosen."""

import pytest

from layercollapse.pipeline.history import choose, taken
from layercollapse.report.record import Record, Step
from layercollapse.strategies import Taken


def test_what_a_strategy_is_told():
    record = Record({"max_drop": 0.5}, {}, sites=["a", "b"])
    steps = ((90.0, []), (89.5, ["a"]), (89.4, ["a", "b"]))
    record.steps = [Step(n, 1.0, top1, 0, [0.5, 1.0], [], 0.0, linear=names) for n, (top1, names) in enumerate(steps)]
    entropy = {"a": 0.5, "b": 1.0}
    assert taken(record, 1) == [
        Taken((), True, False, entropy),
        Taken(("a",), True, True, entropy),
        Taken(("a", "b"), False, False, entropy),
    ]


@pytest.mark.parametrize(
    ("steps", "max_drop", "expected"),
    [
        ([(90.0, 0), (91.0, 1), (89.6, 3), (80.0, 9)], 0.5, 2),  # the most collapsed within the budget
        ([(90.0, 0), (89.4, 5)], 0.5, 0),  # outside it
        ([(90.0, 0), (89.5, 5)], 0.5, 1),  # the limit itself is inside
        ([(90.0, 2), (92.0, 2), (91.0, 2)], 0.5, 1),  # equally shallow: the best
        ([(90.0, 0), (10.0, 4)], 100, 1),
    ],
)
def test_choose(steps, max_drop, expected):
    made = [Step(n, 1.0, top1, sites, [], [], 0.0) for n, (top1, sites) in enumerate(steps)]
    assert choose(made, max_drop) == expected
