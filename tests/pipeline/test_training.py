"""A training that goes on where it was interrupted, to the same bits."""

import functools
import random

import numpy as np
import pytest
import torch
from torch import nn

import processes
from interrupted import EPOCHS, STEPS, Job, Killed, outcome
from layercollapse._util.ranks import Ranks
from layercollapse.errors import LayerCollapseError
from layercollapse.pipeline.training import TrainingCheckpoint, call

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


def own(model, checkpoint="weights.pt"):
    return checkpoint


def ours(model, checkpoint=None):
    return checkpoint


def test_an_argument_of_the_users_with_the_name():
    checkpoint, got = TrainingCheckpoint(nn.ReLU()), []
    for train in (own, ours, functools.partial(ours, checkpoint="weights.pt"), functools.partial(ours)):
        call(functools.wraps(train)(lambda *a, train=train, **k: got.append(train(*a, **k))), nn.ReLU(), checkpoint)
    assert got == ["weights.pt", checkpoint, "weights.pt", checkpoint]


def of_own_batches(rank):
    """The statistics of a batch norm after a training in which each process has seen batches of its own."""
    model = nn.BatchNorm1d(2)

    def train(model):
        nn.parallel.DistributedDataParallel(model)(torch.tensor([[0.0, 1.0], [2.0 * rank, 3.0]]))

    call(train, model, TrainingCheckpoint(model, ranks=Ranks.default()))
    return model.running_mean


@pytest.mark.long
def test_processes_have_the_same_statistics_after_a_training():
    first, second = processes.run(2, of_own_batches)
    torch.testing.assert_close(first, torch.tensor([0.0, 0.2]))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("total", "names", "got"),
    [
        (EPOCHS + 1, ("optimizer",), f"{EPOCHS + 1} epochs with optimizer"),
        (EPOCHS, (), f"{EPOCHS} epochs with nothing"),
    ],
)
def test_another_training_than_the_one_interrupted(tmp_path, total, names, got):
    def train(model, checkpoint, total=EPOCHS, names=("optimizer",), kill=True):
        objects = {"optimizer": torch.optim.SGD(model.parameters(), 0.1)}
        for epoch in checkpoint.epochs(total, **{name: objects[name] for name in names}):
            if kill and epoch:
                raise Killed

    with pytest.raises(Killed):
        Job().run(tmp_path / "run", train=train)
    other = functools.partial(train, total=total, names=names, kill=False)
    wanted = f"of {EPOCHS} epochs with optimizer, got {got}; without the files training-"
    with pytest.raises(LayerCollapseError, match=wanted):
        Job().run(tmp_path / "run", train=other, resume=True)
    for file in (tmp_path / "run" / "checkpoints").glob("training-*"):
        file.unlink()
    Job().run(tmp_path / "run", train=other, resume=True)


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


def test_another_optimizer_than_before(tmp_path):
    def other(model, checkpoint):
        optimizer = torch.optim.SGD([{"params": [parameter]} for parameter in model.parameters()], lr=0.1)
        for _ in checkpoint.epochs(EPOCHS, optimizer=optimizer, schedule=optimizer, average=optimizer):
            pass

    with pytest.raises(Killed):
        Job(kill_in=1).run(tmp_path / "run")
    with pytest.raises(
        LayerCollapseError, match=r"optimizer: expected one that takes the state .*got SGD, .* training-\*"
    ):
        Job().run(tmp_path / "run", resume=True, train=other)
