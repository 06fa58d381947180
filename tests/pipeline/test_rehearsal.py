"""The end of a run: tried before the first training, and what fails at it later loses nothing."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import layercollapse as lc
from layercollapse.errors import LayerCollapseError
from layercollapse.pipeline.schedule import Schedule
from layercollapse.report.record import Record

pytestmark = pytest.mark.usefixtures("one_thread")


class Small(nn.Module):
    """Takes labels, as the models of transformers do, and gives a dict."""

    def __init__(self, extra=None):
        super().__init__()
        self.fc, self.head, self.extra = nn.Linear(4, 6), nn.Linear(6, 3), extra

    def forward(self, x, labels=None):
        y = self.head(torch.relu(self.fc(x)))
        return {"logits": y} if labels is None else {"loss": y.mean(), "logits": y}

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


class Log:
    """Calls of train and evaluate, in order."""

    def __init__(self, accuracy=lambda model: 90.0, model=None):
        torch.manual_seed(0)
        self.calls, self.accuracy, self.model = [], accuracy, model or Small()

    def train(self, model):
        self.calls.append("train")

    def evaluate(self, model):
        self.calls.append(type(model).__name__)
        return self.accuracy(model)

    def run(self, out, **changes):
        arguments = {"steps": 1, "max_drop": 100, "data": [torch.randn(32, 4)], "out": out, **changes}
        return lc.run(self.model, train=self.train, evaluate=self.evaluate, **arguments)


def collapsed(model):
    return not isinstance(model, Small)


@pytest.mark.parametrize(
    ("accuracy", "message"),
    [
        (lambda model: 0.9, "evaluate: expected an accuracy in percent.* got 0.9"),
        (lambda model: "90", "evaluate: expected a function that returns an accuracy in percent, got '90'"),
        (lambda model: model.fc.in_features and model.name, "evaluate: .* works with the collapsed network too"),
        (lambda model: model(torch.zeros(2, 4), labels=3)["loss"], "evaluate: .*stopped with"),
        (lambda model: model(torch.zeros(2, 4)).logits.mean(), "evaluate: .*stopped with.*logits"),
    ],
)
def test_a_metric_that_would_fail_at_the_end_fails_first(tmp_path, accuracy, message):
    log = Log(accuracy)
    with pytest.raises(LayerCollapseError, match=message):
        log.run(tmp_path / "made")
    assert log.calls == ["Collapsed"]
    assert list((tmp_path / "made").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "extra", "message"),
    [
        ({"settings": {"a": {1}}}, None, "settings: expected what JSON can hold"),
        ({"test": lambda model: float("nan")}, None, "test: expected a function that returns an accuracy"),
        ({}, {"a": torch.zeros(2)}, "model: expected extra state that JSON holds"),
        ({"box": (1.0, 0.0)}, None, "box: "),
        ({"unit": "points"}, None, "unit: expected 'percent', 'fraction' or None, got 'points'"),
        ({"rule": "nothing"}, None, "rule: expected nepenthe, .* got 'nothing'"),
        ({"max_layer_share": 0}, None, "max_layer_share: expected a fraction"),
        ({"train_first": 1}, None, "train_first: expected True or False, got 1"),
        ({"steps": 1.5}, None, "steps: expected a whole number, got 1.5"),
        ({"amount": True}, None, "amount: expected a finite number, got True"),
    ],
)
def test_other_things_that_fail_before_training(tmp_path, changes, extra, message):
    log = Log(model=Small(extra))
    with pytest.raises(LayerCollapseError, match=message):
        log.run(tmp_path / "made", **changes)
    assert "train" not in log.calls


def test_one_more_evaluation_and_no_other_change(tmp_path):
    log = Log(lambda model: np.float32(0.5), model=Small({"seen": [1, 2]}))
    result = log.run(
        tmp_path / "made", unit="fraction", max_drop=np.float64(1), amount=torch.tensor(9), seed=np.int64(3)
    )
    assert log.calls == ["Collapsed", "train", "Small", "Small", "train", "Small", "Collapsed"]
    record = json.loads((tmp_path / "made" / "run.json").read_text())
    assert [step["top1_validation"] for step in record["steps"]] == [50.0, 50.0]
    assert record["after"]["top1"] == 50.0
    assert (record["settings"]["max_drop"], record["settings"]["amount"], record["settings"]["seed"]) == (1.0, 9, 3)
    assert record["failed"] == []
    assert result.record.notes == [result.record.choice]
    assert result.metrics["after"]["top1"] == 50.0


def test_a_network_that_is_trained_already(tmp_path):
    log = Log()
    log.run(tmp_path / "made", train_first=False)
    assert log.calls.count("train") == 1
    assert log.calls[:3] == ["Collapsed", "Small", "Small"]


def at_the_end(log):
    """An error of the user's in the last call with a collapsed model, not in the first."""

    def accuracy(model):
        if collapsed(model) and log.calls.count("train"):
            raise MemoryError("no more")
        return 90.0

    return accuracy


def test_what_fails_after_the_collapse_is_said_and_the_model_is_there(tmp_path):
    log = Log()
    log.accuracy = at_the_end(log)
    with pytest.warns(RuntimeWarning, match=r"measuring the collapsed model stopped with .*no more.*resume=True"):
        result = log.run(tmp_path / "made")
    assert result.model(torch.zeros(2, 4))["logits"].shape == (2, 3)
    assert (tmp_path / "made" / "model.safetensors").is_file()
    assert any("no more" in note for note in result.record.notes)
    assert "no more" in (tmp_path / "made" / "report.html").read_text()
    with pytest.raises(LayerCollapseError, match=r"metrics: .*no more.*resume=True"):
        _ = result.metrics
    log.accuracy = lambda model: 90.0
    again = log.run(tmp_path / "made", resume=True)
    assert log.calls.count("train") == 2  # nothing is trained again
    assert again.record.failed == []
    assert again.metrics["after"]["top1"] == 90.0


@pytest.mark.parametrize("kind", [LayerCollapseError, OSError])
def test_an_error_in_a_later_step_names_the_call_that_goes_on(tmp_path, kind, monkeypatch):
    log = Log()
    step = Schedule._act

    def failing(self, report):
        raise kind("disk: expected room, got none")

    monkeypatch.setattr(Schedule, "_act", failing)
    with pytest.raises(kind, match="disk: expected room, got none") as caught:
        log.run(tmp_path / "made")
    said = str(caught.value) + "".join(getattr(caught.value, "__notes__", ()))
    if kind is LayerCollapseError or hasattr(caught.value, "__notes__"):
        assert f"run(..., out={str(tmp_path / 'made')!r}, resume=True)" in said
    monkeypatch.setattr(Schedule, "_act", step)
    assert len(log.run(tmp_path / "made", resume=True).record.steps) == 2


def test_the_dense_network_because_nothing_else_is_within_the_budget(tmp_path):
    log = Log()
    log.accuracy = lambda model: 90.0 if log.calls.count("train") < 2 else 60.0
    result = log.run(tmp_path / "made", max_drop=0.5)
    note = "every pruned one is below the accuracy budget of 0.5 points (the best, step 1, by 30.00 points)"
    for text in (*result.record.notes, result.collapse.explain(), (tmp_path / "made" / "report.html").read_text()):
        assert note in text
    assert "prune more before it" not in result.collapse.explain()
    assert Record.load(tmp_path / "made").notes == result.record.notes
