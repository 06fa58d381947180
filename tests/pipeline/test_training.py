"""A training that goes on where it was interrupted, to the same bits."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from interrupted import EPOCHS, STEPS, Job, Killed, outcome
from layercollapse.errors import LayerCollapseError
from layercollapse.pipeline.training import TrainingCheckpoint

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    job = Job()
    job.run(folder)
    assert job.seen == [*range(EPOCHS)] * (STEPS + 1)
    assert not list(folder.glob("checkpoints/training-*"))
    return outcome(folder)


@pytest.mark.parametrize("kill_in", range(EPOCHS * (STEPS + 1)))
def test_killed_in_any_epoch(tmp_path, whole, kill_in):
    with pytest.raises(Killed):
        Job(kill_in).run(tmp_path / "run")
    assert len(list((tmp_path / "run").glob("checkpoints/training-*"))) == (kill_in % EPOCHS > 0)
    # Whatever the new process has drawn so far.
    torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    job = Job()
    job.run(tmp_path / "run", resume=True)
    assert job.seen[: EPOCHS - kill_in % EPOCHS] == [*range(kill_in % EPOCHS, EPOCHS)]
    assert len(job.seen) == EPOCHS * (STEPS + 1) - kill_in
    assert outcome(tmp_path / "run") == whole


def test_killed_again_and_again(tmp_path, whole):
    for _ in range(EPOCHS * (STEPS + 1) - 1):
        with pytest.raises(Killed):
            Job(kill_in=1).run(tmp_path / "run", resume=True)
    Job().run(tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == whole


@pytest.mark.parametrize("total", [-1, 1.5, True, "3"])
def test_bad_totals(total):
    with pytest.raises(LayerCollapseError, match="total: expected a number of epochs"):
        TrainingCheckpoint(nn.ReLU()).epochs(total)


def test_bad_objects_and_a_second_call():
    checkpoint = TrainingCheckpoint(nn.ReLU())
    with pytest.raises(LayerCollapseError, match=r"optimizer: expected an object with state_dict .* got int"):
        checkpoint.epochs(2, optimizer=3)
    assert list(checkpoint.epochs(2)) == [0, 1]
    with pytest.raises(LayerCollapseError, match="one call of epochs in a training, got a second"):
        checkpoint.epochs(2)


def test_a_state_that_cannot_be_written(tmp_path):
    class Odd:
        def state_dict(self):
            return {"function": print}

        def load_state_dict(self, state):
            pass

    def train(model, checkpoint):
        for _ in checkpoint.epochs(2, odd=Odd()):
            pass

    with pytest.raises(LayerCollapseError, match=r"\['objects'\]\['odd'\]\['function'\]: expected tensors"):
        Job().run(tmp_path / "run", train=train)
