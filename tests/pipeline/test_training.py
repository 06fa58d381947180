"""A training that goes on where it was interrupted, to the same bits."""

import functools
import json
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

import layercollapse as lc
from layercollapse.errors import LayerCollapseError
from layercollapse.pipeline.training import FILE, TrainingCheckpoint

pytestmark = pytest.mark.usefixtures("one_thread")

EPOCHS, STEPS = 3, 2


class Killed(BaseException):
    """What nothing catches, like a signal."""


class Job:
    """Trains on shuffled and noisy data, and may be killed in an epoch, counted over all trainings."""

    def __init__(self, kill_in=None):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(64, 6, generator=generator)
        self.data = TensorDataset(x, (x[:, 0] > 0).long())
        self.kill_in, self.epoch, self.seen = kill_in, 0, []

    def model(self):
        torch.manual_seed(0)
        hidden = [layer for _ in range(3) for layer in (nn.Linear(8, 8), nn.ReLU())]
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), *hidden, nn.Linear(8, 2))

    def train(self, model, checkpoint):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
        average = AveragedModel(model)
        for epoch in checkpoint.epochs(EPOCHS, optimizer=optimizer, schedule=schedule, average=average):
            self.seen.append(epoch)
            for x, y in DataLoader(self.data, batch_size=16, shuffle=True):
                if self.epoch == self.kill_in:
                    raise Killed
                optimizer.zero_grad()
                noise = torch.from_numpy(np.random.rand(*x.shape)).float() * random.random()  # noqa: NPY002
                nn.functional.cross_entropy(model(x + noise), y).backward()
                optimizer.step()
                average.update_parameters(model)
            schedule.step()
            self.epoch += 1

    def run(self, out, **options):
        model = self.model()
        x, y = self.data.tensors
        return lc.run(
            model,
            train=options.pop("train", self.train),
            evaluate=lambda model: 100 * float((model(x).argmax(1) == y).float().mean()),
            data=DataLoader(self.data, batch_size=16, shuffle=True),
            unit="percent",
            steps=STEPS,
            max_drop=100.0,
            out=out,
            **{"strategy": "collapse+prune", "amount": 0.3, **options},
        )


def outcome(folder):
    record = json.loads((folder / "run.json").read_text())
    for step in record["steps"]:
        del step["seconds"]
    return record["steps"], {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    job = Job()
    job.run(folder)
    assert job.seen == [*range(EPOCHS)] * (STEPS + 1)
    assert not (folder / "checkpoints" / FILE).exists()
    return outcome(folder)


@pytest.mark.parametrize("kill_in", range(EPOCHS * (STEPS + 1)))
def test_killed_in_any_epoch(tmp_path, whole, kill_in):
    with pytest.raises(Killed):
        Job(kill_in).run(tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / FILE).exists() == (kill_in % EPOCHS > 0)
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


def test_other_settings_or_another_training_are_refused(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Killed):
        Job(kill_in=1).run(out)
    before = {path.name: path.read_bytes() for path in (out / "checkpoints").iterdir()}
    with pytest.raises(LayerCollapseError, match=r"resume: expected the settings .* seed=7 instead of 0"):
        Job().run(out, resume=True, seed=7)

    def shorter(model, checkpoint):
        checkpoint.epochs(2).__next__()

    with pytest.raises(LayerCollapseError, match=r"checkpoint: .* of 3 epochs .* got 2 epochs with nothing"):
        Job().run(out, resume=True, train=shorter)
    assert {path.name: path.read_bytes() for path in (out / "checkpoints").iterdir()} == before
    assert not (out / "run.json").exists()
    job = Job()
    job.run(out)  # a new run, from the beginning
    assert job.seen[:EPOCHS] == [*range(EPOCHS)]


def test_two_runs_in_one_folder(tmp_path):
    inside, go_on = threading.Event(), threading.Event()

    def waits(model):
        inside.set()
        assert go_on.wait(60)

    first = threading.Thread(target=functools.partial(Job().run, tmp_path / "run", train=waits))
    first.start()
    try:
        assert inside.wait(60)
        with pytest.raises(LayerCollapseError, match=r"out: expected a folder that nothing else is writing"):
            Job().run(tmp_path / "run", resume=True)
    finally:
        go_on.set()
        first.join()
    Job().run(tmp_path / "run", resume=True)


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / ".part-run.json.abc").write_text("{")
    (out / ".part-try").mkdir()
    (out / "checkpoints" / ".part-step-00.safetensors.xyz").write_text("")
    (out / "mine.txt").write_text("kept")
    Job().run(out, train=lambda model: None)
    assert not [path for path in out.rglob("*") if ".part" in path.name]
    assert (out / "mine.txt").exists()


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
