"""The collapse at the end of a run: trained again where the border changes, and taken if it is good enough."""

import pytest
import torch
from torch import nn

from layercollapse.errors import LayerCollapseError
from layercollapse.pipeline.api import run
from layercollapse.report.record import Record

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
    assert [type(model).__name__ for model in trained] == ["Sequential", "Collapsed"]
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


def test_an_unknown_mode_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(LayerCollapseError, match="mode: expected 'exact' or 'repad', got 'fast'"):
        run(wide_pair(), train=pytest.fail, evaluate=pytest.fail, data=[torch.rand(6, 1, 8, 8)], mode="fast")
