"""The steps as a strategy is told of them."""

from layercollapse.pipeline.history import taken
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
