"""Which step is chosen, and how long a collapsed network is trained."""

import pytest
import torch
from torch import nn

from layercollapse.pipeline.metric import Metric
from layercollapse.pipeline.schedule import choose, settled
from layercollapse.report.record import Step
from records import make_record

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


@pytest.mark.parametrize(
    ("scores", "good", "trainings"),
    [
        ([96.5], True, 1),  # the limit itself is inside
        ([96.4, 96.6], True, 2),
        ([90.0, 96.4, 99.0], False, 2),  # two trainings at most
    ],
)
def test_a_collapsed_network_is_trained_until_it_is_within_the_budget(scores, good, trainings):
    record, seen, model = make_record(), [], nn.Dropout()
    record.settings["seed"] = 5

    def train(given):
        assert given is model
        assert given.training
        seen.append(torch.initial_seed())

    left = iter(scores)
    assert (
        settled(model, train=train, evaluate=Metric(lambda _: next(left), "evaluate", "percent"), record=record) == good
    )
    assert record.retrained == trainings
    assert seen == [8, 9][:trainings]  # the seed, and a number for each of three steps
    assert not model.training
