"""Which step is chosen."""

import pytest

from layercollapse.pipeline.schedule import choose
from layercollapse.report.record import Step

pytestmark = pytest.mark.usefixtures("one_thread")


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
