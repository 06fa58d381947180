"""The collapse at the end of a run: trained again where the border changes, and taken if it is good enough."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from layercollapse._util.ranks import Ranks
from layercollapse.compiler.driver import api as collapse_api
from layercollapse.errors import LayerCollapseError
from layercollapse.pipeline.api import run
from layercollapse.pipeline.finish import _good_enough, settled
from layercollapse.pipeline.metric import Metric
from layercollapse.pipeline.norms import has_norms
from layercollapse.report.record import Record
from records import make_record

pytestmark = pytest.mark.usefixtures("one_thread")


def wide_pair():
    """Between its convolutions stands a rectifier that is always on, and merging them pays but for the border."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 40, 3, padding=1), nn.ReLU(), nn.Conv2d(40, 2, 3, padding=1), nn.ReLU(), nn.Flatten()
    )
    model[0].bias.data += 20
    return model


@pytest.mark.parametrize("holds", [True, False])
def test_a_model_padded_anew_is_trained_again_and_taken_if_it_is_good_enough(tmp_path, holds):
    trained = []

    def accuracy(model):
        return 90.0 if isinstance(model, nn.Sequential) or holds else 80.0

    result = run(
        wide_pair(),
        train=trained.append,
        evaluate=accuracy,
        data=[torch.rand(6, 1, 8, 8)],
        steps=0,
        mode="repad",
        out=tmp_path / "made",
    )
    assert [type(model).__name__ for model in trained] == ["Sequential", *["Collapsed"] * (1 if holds else 2)]
    assert (trained[1] is result.model) == holds
    assert result.record.repadded == (["0 → 2"] if holds else [])
    assert result.record.forms == result.collapse.latency
    assert result.record.form == result.collapse.form in result.record.forms
    assert [tuple(region.layers) for region in result.record.regions] == [
        made.layers for made in result.collapse.regions
    ]
    assert Record.load(tmp_path / "made").regions == result.record.regions
    assert result.record.after.depth == (1 if holds else 2)
    text = (tmp_path / "made" / "report.html").read_text(encoding="utf-8")
    assert ("changes the border: 0 → 2" in text) == holds
    assert Record.load(tmp_path / "made").repadded == result.record.repadded


class Counted:
    """A cost model without a clock: of layers their weights and 30, of networks their parameters."""

    def __init__(self, device):
        self.device = device

    def layer(self, op, inputs):
        return 30.0 + math.prod(op.size)

    def networks(self, models, example_inputs, *, seconds, passes):
        return {name: float(sum(p.numel() for p in model.parameters())) for name, model in models.items()}


@pytest.mark.parametrize("holds", [True, False])
def test_a_model_with_fitted_layers_is_trained_again_and_taken_if_it_is_good_enough(tmp_path, monkeypatch, holds):
    monkeypatch.setattr(collapse_api, "Latency", Counted)
    trained = []

    def accuracy(model):
        return 90.0 if isinstance(model, nn.Sequential) or holds else 80.0

    model = wide_pair()
    with torch.no_grad():  # on because nothing is below zero, with no constant that would differ at the border
        model[0].weight.abs_()
        model[0].bias.zero_()
    result = run(
        model,
        train=trained.append,
        evaluate=accuracy,
        data=[torch.rand(20, 1, 8, 8)],
        steps=0,
        mode="refit",
        out=tmp_path / "made",
    )
    assert [type(model).__name__ for model in trained] == ["Sequential", *["Collapsed"] * (1 if holds else 2)]
    assert (trained[1] is result.model) == holds
    record = Record.load(tmp_path / "made")
    assert record.refitted == [str(one) for one in result.collapse.refitted]
    assert len(record.refitted) == int(holds)
    assert [verdict.guarantee for verdict in record.verdicts] == (["refitted", ""] if holds else ["empirical", ""])
    assert record.after.depth == (1 if holds else 2)
    text = (tmp_path / "made" / "report.html").read_text(encoding="utf-8")
    assert ("0 … 2 (2 layers): one 5x5 convolution, R²" in text) == holds


def good(collapsed, settle, record):
    _, result = _good_enough(nn.Linear(1, 1), collapsed, [], settle, record=record, folder=Path(), ranks=Ranks())
    return result


@pytest.mark.parametrize(
    ("enough", "taken", "asked"),
    [
        (1, "a", [("refit", 0.8)]),
        (2, "b", [("refit", 0.8), ("refit", 0.9)]),
        # The third is what the second was, and is not trained again; then the exact collapse is taken.
        (9, None, [("refit", 0.8), ("refit", 0.9), ("refit", 0.97), ("exact", 0.0)]),
    ],
)
def test_better_fits_are_asked_for_where_one_is_not_good_enough(enough, taken, asked):
    came, trained = [], []

    def collapsed(mode="refit", min_r2=0.0):
        came.append((mode, min_r2))
        by = {0.8: "a", 0.9: "b", 0.97: "b"}.get(min_r2)
        fitted = (SimpleNamespace(layers=("0", "2"), by=by),)
        return SimpleNamespace(repadded=(), refitted=fitted[: mode == "refit"], model=nn.Linear(1, 1), by=by)

    def settle(model):
        trained.append(model)
        return len(trained) == enough

    assert good(collapsed, settle, make_record()).by == taken
    assert came == asked
    assert len(trained) == min(2, enough)


def test_a_training_that_fails_is_not_tried_again():
    record, trained = make_record(), []

    def collapsed(mode="refit", min_r2=0.0):
        fitted = (SimpleNamespace(layers=("0", "2"), by=str(min_r2)),)
        return SimpleNamespace(repadded=(), refitted=fitted[: mode == "refit"], model=nn.Linear(1, 1), mode=mode)

    def settle(model):
        trained.append(model)
        raise RuntimeError("no memory")

    assert good(collapsed, settle, record).mode == "exact"
    assert len(trained) == 1
    assert len(record.failed) == 1
    assert record.failed[0].startswith("training the collapsed model stopped with")
    assert record.failed[0].endswith("RuntimeError: no memory")


def test_a_network_with_batch_norms_trains_once_more_with_new_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(collapse_api, "Latency", Counted)
    model = wide_pair()
    model.insert(1, nn.BatchNorm2d(40))
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].bias.zero_()
    outputs = []

    def train(trained):
        if not isinstance(trained, nn.Sequential):
            assert trained.training
            norms = [module for module in trained.modules() if isinstance(module, nn.BatchNorm2d)]
            with torch.no_grad():
                norms[0].weight.mul_(2)
            outputs.append(trained.eval()(x))

    x = torch.rand(20, 1, 8, 8)
    result = run(
        model, train=train, evaluate=lambda model: 90.0, data=[x], steps=0, mode="refit", out=tmp_path / "made"
    )
    assert result.collapse.refitted
    assert not has_norms(result.model)
    torch.testing.assert_close(result.model(x), outputs[0])
    assert result.record.after.parameters == sum(p.numel() for p in result.model.parameters())
    assert not result.record.failed


def test_an_unknown_mode_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(LayerCollapseError, match="mode: expected 'exact', 'repad' or 'refit', got 'fast'"):
        run(wide_pair(), train=pytest.fail, evaluate=pytest.fail, data=[torch.rand(6, 1, 8, 8)], mode="fast")


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
