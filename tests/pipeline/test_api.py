import json
from itertools import pairwise

import pytest
import torch
from torch import nn

from layercollapse.cli.experiment import Job
from layercollapse.compiler.backend.serialize import load
from layercollapse.errors import LayerCollapseError
from layercollapse.pipeline import checkpoint
from layercollapse.pipeline.api import run
from layercollapse.prune.pruner import Pruner
from layercollapse.report.record import Record

JOB = Job(data="digits", model="resnet18", width=4, epochs=2)
SMALL = Job(data="digits", model="mlp", width=2, epochs=1)


pytestmark = pytest.mark.usefixtures("one_thread")


def start(out, job=JOB, **changes):
    torch.manual_seed(0)
    model = job.build()
    arguments = {
        "train": job.fit,
        "evaluate": job.evaluate,
        "data": job.training_batches,
        "test": job.test,
        "test_data": job.test_batches,
        "amount": 0.7,
        "steps": 3,
        "max_drop": 100.0,
        "out": out,
    }
    return model, run(model, **{**arguments, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: its folder, the sparse model and the result."""
    out = tmp_path_factory.mktemp("run") / "made"
    events = []
    model, result = start(out, progress=lambda event: events.append((event.stage, event.step)))
    return out, model, result, events


def test_the_collapsed_model_is_shallower_and_agrees(finished):
    _, sparse, result, _ = finished
    record = result.record
    assert record.sites_collapsed >= 1
    assert record.after.depth < record.before.depth == 18
    assert record.after.parameters < record.before.parameters
    assert record.after.file_mib < record.before.file_mib
    images = JOB.dataset.test.inputs
    with torch.no_grad():
        expected, got = sparse.eval()(images), result.model.eval()(images)
    assert float((expected - got).abs().max()) == pytest.approx(record.max_abs_error, rel=0.5, abs=1e-6)
    assert record.max_abs_error < 1e-4
    assert record.identical == record.compared == len(images)
    assert record.before.macs == dense_macs(sparse)
    assert record.after.top1 == pytest.approx(JOB.test(sparse))


def dense_macs(model):
    """Multiply-accumulates of one digit: output positions times weights, layer by layer, from the shapes."""
    macs = []

    def count(module, args, output):
        macs.append(module.weight.numel() * (output[0, 0].numel() if output.ndim == 4 else 1))

    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    model(JOB.dataset.test.inputs[:1])
    for handle in handles:
        handle.remove()
    return sum(macs)


def test_the_saved_model_is_the_collapsed_one(finished):
    out, _, result, _ = finished
    images = JOB.dataset.test.inputs[:50]
    with torch.no_grad():
        expected = result.model.eval()(images)
        torch.testing.assert_close(load(out)(images), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(torch.export.load(out / "model.pt2").module()(images), expected, rtol=0, atol=1e-5)


def test_the_folder_holds_everything(finished):
    out, _, result, _ = finished
    names = {path.name for path in out.iterdir()}
    wanted = "model.safetensors model.json model.pt2 report.html network.svg metrics.json run.json entropy.json"
    assert names == {*wanted.split(), "checkpoints"}
    assert Record.load(out) == result.record
    assert json.loads((out / "metrics.json").read_text()) == result.metrics
    kept = {path.name[:7] for path in (out / "checkpoints").iterdir()}
    assert kept == {"step-00", f"step-{result.record.chosen:02d}", "step-03"}


def test_the_stages_are_announced_in_order(finished):
    *_, result, events = finished
    steps = [(stage, step) for step in range(4) for stage in ("train", "measure", "step")]
    assert events == [*steps, ("collapse", result.record.chosen), ("done", result.record.chosen)]


def test_who_is_told_is_closed_however_the_run_ends(tmp_path):
    class Told:
        closed = 0

        def __call__(self, event):
            assert event.folder == tmp_path / "run"
            if event.stage == "measure":
                raise OSError("no space left")

        def close(self):
            self.closed += 1

    told = Told()
    with pytest.raises(OSError, match="no space left"):
        start(tmp_path / "run", job=SMALL, progress=[print, told])
    assert told.closed == 1


def test_densities_follow_the_amount(finished):
    densities = [step.density for step in finished[2].record.steps]
    assert densities[0] == 1.0
    # Layers whose site has collapsed take no part, so a step may remove a little less than the amount.
    for before, after in pairwise(densities):
        assert 0.3 * before - 1e-3 <= after < before


def test_the_sparse_model_is_left_in_place_with_its_zeros(finished):
    _, sparse, result, _ = finished
    pruner = Pruner(sparse, JOB.example)
    assert pruner.density == pytest.approx(result.record.steps[result.record.chosen].density, abs=1e-4)
    assert not sparse.training


def test_ctrl_c_collapses_what_is_there_and_the_run_resumes(tmp_path):
    def interrupt_in_step_2(event):
        if (event.stage, event.step) == ("measure", 2):
            raise KeyboardInterrupt

    _, whole = start(tmp_path / "whole", job=SMALL)
    _, result = start(tmp_path / "stopped", job=SMALL, progress=interrupt_in_step_2)
    assert result.record.interrupted
    assert [step.step for step in result.record.steps] == [0, 1]
    assert "interrupted" in (tmp_path / "stopped" / "report.html").read_text()
    assert result.record.identical == result.record.compared

    _, resumed = start(tmp_path / "stopped", job=SMALL, resume=True)
    assert not resumed.record.interrupted
    first, second = (
        [(step.density, step.top1_validation, step.entropy) for step in result.record.steps]
        for result in (whole, resumed)
    )
    assert first == second  # and so a run repeats with its seed
    assert len(first) == 4
    assert resumed.record.verdicts == whole.record.verdicts


def test_ctrl_c_before_the_dense_model_is_trained(tmp_path):
    def interrupted(model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, train=interrupted)
    assert list(tmp_path.iterdir()) == []


def test_accuracy_below_the_budget_ends_the_schedule(tmp_path):
    accuracies = iter([10.0, 90.0, 89.9, 80.0, 81.0, 99.0])
    _, result = start(tmp_path, job=SMALL, evaluate=lambda model: next(accuracies), max_drop=0.5, steps=9, amount=0.1)
    assert [step.top1_validation for step in result.record.steps] == [90.0, 89.9, 80.0, 81.0]
    assert result.record.stopped == "accuracy below the budget for 2 steps in a row"
    assert result.record.chosen in (0, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": []}, "data: expected at least one batch, got an empty iterable"),
        ({"test_data": []}, "test_data: expected at least one batch"),
        ({"data": iter([torch.zeros(1, 1, 8, 8)])}, "data: expected batches that can be gone through again"),
        ({"data": [{"x": 1}]}, "data: expected batches that are a tensor, .* got dict"),
        ({"data": torch.zeros(4, 1, 8, 8)}, "data: expected an iterable of batches, got a Tensor"),
        ({"amount": 0.0}, "amount: expected .* got 0.0"),
        ({"amount": 1.5}, "amount: expected .* got 1.5"),
        ({"steps": -1}, "steps: expected at least 0, got -1"),
        ({"max_drop": -0.5}, "max_drop: expected percentage points, at least 0, got -0.5"),
        ({"max_drop": float("nan")}, "max_drop: .* got nan"),
        ({"evaluate": lambda model: None}, "evaluate: expected a function that returns .* got None"),
        ({"rule": "nothing"}, "rule: expected .* got 'nothing'"),
    ],
)
def test_bad_arguments(tmp_path, changes, message):

    def never(model):
        raise AssertionError("trained before the arguments were checked")

    with pytest.raises(LayerCollapseError, match=message):
        start(tmp_path, job=SMALL, **{"train": never, **changes})


def test_a_folder_with_a_run_is_not_overwritten(finished):
    with pytest.raises(LayerCollapseError, match="out: expected a folder without a run in it"):
        start(finished[0])


def test_resuming_with_other_settings(finished):
    with pytest.raises(LayerCollapseError, match=r"resume: .* amount=0.1 instead of 0.7"):
        start(finished[0], resume=True, amount=0.1)


def test_out_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LayerCollapseError, match=r"out: expected a folder that can be written, got .*file"):
        start(tmp_path / "file" / "run")


def test_truncated_checkpoint(finished, tmp_path):
    whole = checkpoint.path(finished[0], 0)
    target = checkpoint.path(tmp_path, 0)
    target.parent.mkdir()
    target.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(LayerCollapseError, match=r"run: expected the weights of step 0 in .*step-00\.safetensors"):
        checkpoint.load(tmp_path, 0, JOB.build())


def test_checkpoint_of_another_model(finished):
    with pytest.raises(LayerCollapseError, match="run: expected the weights of step 0"):
        checkpoint.load(finished[0], 0, nn.Linear(2, 2))


def test_another_budget_chooses_anew_without_training(tmp_path):
    tops = iter([10.0, 90.0, 89.0, 88.0])  # untrained, dense, and after each pruning
    _, first = start(tmp_path / "made", job=SMALL, steps=2, max_drop=0.0, evaluate=lambda model: next(tops))
    assert first.record.chosen == 0

    def train(model):
        raise AssertionError("there is nothing left to train")

    again = {"job": SMALL, "steps": 2, "resume": True, "train": train}
    _, second = start(tmp_path / "made", max_drop=5.0, **again)
    # Step 1 would be within the budget too, but its weights were not kept: of 0 and 2, the one with more linear sites.
    assert sorted(path.name[:7] for path in (tmp_path / "made" / "checkpoints").glob("*.masks.*")) == [
        "step-00",
        "step-02",
    ]
    best = max((0, 2), key=lambda n: (first.record.steps[n].sites_collapsed, first.record.steps[n].top1_validation))
    assert second.record.chosen == best
    assert second.record.settings["max_drop"] == 5.0
    assert second.record.before.top1 == first.record.before.top1
