"""The job of the command line: its batches, its recipe, and what it refuses before anything is trained."""

import json

import pytest
import torch
from torch import nn

import processes
from layercollapse.cli import experiment
from layercollapse.cli.experiment import Job
from layercollapse.errors import LayerCollapseError
from layercollapse.pipeline import checkpoint
from layercollapse.prune.pruner import Pruner
from layercollapse.report.record import Record
from layercollapse.zoo.train import accuracy

DIGITS = Job(data="digits", model="mlp", width=2, epochs=1)  # 1,258, 180 and 359 images of 8 × 8


def record_with(settings):
    return Record(settings=settings, environment={}, sites=[], channels=[])


def test_a_job_comes_back_from_the_record():
    settings = {**json.loads(json.dumps(DIGITS.settings)), "max_drop": 0.5}
    assert Job.of(record_with(settings)) == DIGITS
    old = {"data": "idx", "data_dir": "/images", "model": "mlp", "width": 2, "epochs": 1, "device": "cpu"}
    assert Job.of(record_with(old)).data == "idx:/images"
    with pytest.raises(LayerCollapseError, match=r"run: expected a run of the command line, .* got one without 'data'"):
        Job.of(record_with({"max_drop": 0.5}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"device": "nowhere"}, "device: expected one that works here, got 'nowhere'"),
        ({"device": "cuda:99"}, "device: expected one that works here, got 'cuda:99'"),
    ],
)
def test_bad_settings(change, message):
    Job().check()
    with pytest.raises(LayerCollapseError, match=message):
        Job(**change).check()


def test_what_trains_follows_from_the_network_and_the_keys():
    def trainer(**keys):
        found = Job(**{"data": "digits", "epochs": 1, **keys}).trainer
        return found["optimizer"], found["lr"], found["schedule"]

    assert trainer(model="mlp") == ("sgd", 0.1, "one-cycle")
    assert trainer(model="mlp", optimizer="adam") == ("adam", 1e-3, "one-cycle")
    assert trainer(model="mlp", init="somewhere") == ("sgd", pytest.approx(0.01), "one-cycle")
    assert trainer(model="torch.nn:Flatten") == ("adamw", 1e-3, "one-cycle")  # no batch norm
    assert trainer(model="mlp", lr=0.5, milestones="3,4") == ("sgd", 0.5, "milestones")


def test_a_network_that_does_not_fit_is_refused_before_anything_is_trained():
    with pytest.raises(
        LayerCollapseError, match=r"takes \(2, 1, 8, 8\) float32 of digits, got torch.nn:BatchNorm1d, which"
    ):
        Job(data="digits", model="torch.nn:BatchNorm1d", model_args={"num_features": 64}).build()
    with pytest.raises(LayerCollapseError, match=r"model: expected logits \(N, classes\), got \(2, 1, 8, 8\) float32"):
        Job(data="digits", model="torch.nn:Identity").build()


def test_weights_to_begin_with(tmp_path):
    torch.manual_seed(0)
    state = Job(data="digits", model="mlp", width=2).build().state_dict()
    state["layers.head.weight"] = torch.zeros(3, 16)
    torch.save(state, tmp_path / "w.pt")
    job = Job(data="digits", model="mlp", width=2, init=str(tmp_path / "w.pt"))
    model = job.build()
    assert job.fresh == ["layers.head.weight"]
    assert torch.equal(model.layers.fc1.weight, state["layers.fc1.weight"])
    torch.save({"other": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(LayerCollapseError, match=r"init: expected .* got .*w.pt': none of its 1 tensors has a name"):
        job.build()


@pytest.mark.parametrize(
    ("data", "model", "title"),
    [
        ("mnist5k", "resnet18", "mnist5k-resnet18"),
        ("imagefolder:/a/my photos/", "timm:resnet18", "my-photos-timm-resnet18"),
        ("csv:mails/a.csv", "hf:/models/bert", "a-bert"),
        ("mine.data:make", "mine.nets:Net", "mine.data-mine.nets-Net"),
    ],
)
def test_titles_are_names_of_folders(data, model, title):
    assert Job(data=data, model=model).title == title


def test_few_images_are_trained_in_small_batches(monkeypatch):
    assert (DIGITS.training_batch, DIGITS.batches_per_epoch) == (64, 1258 // 64)
    assert Job(data="digits", batch_size=100).training_batch == 100
    monkeypatch.setattr(experiment, "FEW_SAMPLES", 1258)
    assert Job(data="digits").training_batch == 128


def test_every_image_of_a_split_is_in_its_batches():
    for batches, split in ((DIGITS.training_batches, "train"), (DIGITS.test_batches, "test")):
        images = torch.cat([images for images, _ in batches])
        assert torch.equal(images, getattr(DIGITS.dataset, split).inputs)
    assert DIGITS.example[0].shape == (2, 1, 8, 8)


def test_the_accuracies_are_of_their_splits():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.eye(10)[3].expand(len(x), 10)

    for measured, split in ((DIGITS.evaluate, "validation"), (DIGITS.test, "test")):
        labels = getattr(DIGITS.dataset, split).labels
        assert measured(Constant()) == pytest.approx(100 * float((labels == 3).double().mean()))


def test_training_leaves_contiguous_weights_and_counts_its_steps():
    torch.manual_seed(0)
    model, steps = Job(data="digits", model="resnet18", width=2).build(), []
    job = Job(data="digits", model="resnet18", width=2, epochs=1, batch_size=600)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    job.fit(model, lambda: steps.append(1))
    assert len(steps) == job.batches_per_epoch == 2
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    assert not torch.equal(model.conv1.weight, before["conv1.weight"])


def test_the_weights_of_a_step_are_loaded(tmp_path):
    model = DIGITS.build()
    checkpoint.save(tmp_path, 1, model, Pruner(model, DIGITS.example))
    loaded = DIGITS.load(tmp_path, 1)
    assert not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


class Spare(nn.Module):
    """Has a layer that no output depends on, as the poolers of transformers."""

    def __init__(self):
        super().__init__()
        self.fc, self.spare = nn.Linear(64, 10), nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(x.flatten(1))


def in_parallel(rank):
    found = []
    torch.manual_seed(0)  # the weights are those of the first process anyway
    for model in (DIGITS.build(), Spare()):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        parallel = DIGITS._parallel(model.train())
        assert model.training
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        for _ in range(2):  # the second raises where a parameter without a gradient was not known of
            parallel(DIGITS.example[0]).sum().backward()
        found.append(parallel.find_unused_parameters)
    with pytest.raises(
        LayerCollapseError, match="batch_size: expected at least 2 samples for each of 2 processes, got 3"
    ):
        Job(data="digits", model="mlp", width=2, epochs=1, batch_size=3).fit(DIGITS.build())
    job = Job(data="digits", model="mlp", width=2, epochs=1)
    seen = [len(list(part)) for part in (job.training_batches, job.test_batches)]
    return found, seen, job.evaluate(DIGITS.build().eval())


@pytest.mark.long
def test_two_processes_share_the_work():
    (found, seen, top1), (other, rest, same) = processes.run(2, in_parallel)
    assert found == other == [False, True]
    assert (seen, rest) == ([2, 1], [1, 1])  # the first compares on all of test
    assert top1 == same


def test_the_accuracy_is_that_of_all_samples():
    torch.manual_seed(0)
    model, part = DIGITS.build().eval(), DIGITS.dataset.test
    shares = [accuracy(model, part.share(rank, 3), 50) for rank in range(3)]
    assert sum(shares) == pytest.approx(accuracy(model, part, 50))
