"""`layercollapse analyze` and `layercollapse inspect` on models that are not trained here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import layercollapse as lc
from layercollapse.cli.commands import layercollapse

pytestmark = pytest.mark.usefixtures("one_thread")


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(layercollapse, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))


def test_the_entropy_of_a_saved_model(here: Path) -> None:
    lc.collapse(small(), torch.randn(2, 1, 8, 8), cost="macs").save("small")
    result = call("analyze", "small", "--data", "digits", "--json", "counts.json")
    assert result.exit_code == 0, result.output
    images = lc.data.load("digits").train.inputs
    model = lc.load("small")
    with lc.EntropyProbe(model) as probe:
        model(images)
    (layer,) = json.loads(Path("counts.json").read_text())["layers"]
    assert layer["counts"] == probe.report().layers[0].counts.tolist()
    assert f"{probe.report().layers[0].mean:.4f}" in result.output


def test_a_fresh_network_is_the_same_each_time(here: Path) -> None:
    one, two, other = (call("analyze", "mlp", "--width", 2, "--data", "digits", "--seed", s).output for s in (0, 0, 1))
    assert one == two != other
    assert "layers.relu1" in one


MINE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x):
        y = self.fc(x.flatten(1))
        return torch.relu(y) if x.sum() > 0 else torch.relu(y) + 1
"""


def test_what_cannot_be_captured_has_entropies_all_the_same(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (here / "mine_of_looks.py").write_text(MINE)
    result = call("analyze", "mine_of_looks:Net", "--data", "digits", "--json", "counts.json")
    assert result.exit_code == 0, result.output
    assert "it cannot be pruned or collapsed as it is: model: torch.export must be able to capture Net" in result.output
    assert len(json.loads(Path("counts.json").read_text())["layers"]) == 1
    result = call("inspect", "mine_of_looks:Net", "--input", "1x8x8")
    assert result.exit_code == 2
    assert "Error: model: torch.export must be able to capture Net; it stopped at" in result.output


def test_without_a_model_it_is_trained_and_has_no_weights() -> None:
    result = call("analyze", "--data", "digits", "--weights", "w.pt")
    assert result.exit_code == 2
    assert "weights: expected them with a MODEL to analyze" in result.output


def test_inspect_prints_and_draws(here: Path) -> None:
    for name, begin in (("net.svg", "<svg"), ("net.mmd", "flowchart TD")):
        result = call("inspect", "mlp", "--width", 2, "--out", here / "drawings" / name)
        assert result.exit_code == 0, result.output
        assert result.output.startswith("4 rectifier sites, 5 layers, 5 linear regions; depth 5, ")
        assert result.output.splitlines()[-1] == f"drawing: {here / 'drawings' / name}"
        assert (here / "drawings" / name).read_text().startswith(begin)
    assert call("inspect", "--model", "mlp", "--width", 2).output == result.output.partition("\n\ndrawing")[0] + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["analyze", "nothing"], "model: expected a folder with run.json (of a run) or model.json"),
        (["analyze", "mlp", "--epochs", "3"], "epochs: expected no such key with 'mlp'"),
        (["inspect", "nothing"], "model: expected a folder with run.json"),
        (["inspect", "mlp", "--out", "net.png"], "out: expected a file that ends in .svg or .mmd, got 'net.png'"),
        (["inspect", "torch.nn:Identity"], "input: expected the size of an image"),
        (["inspect", "mlp", "--input", "28x28"], "input: expected CHANNELSxHEIGHTxWIDTH"),
        (["inspect", "mlp", "--data", "nothing"], "data: expected one of digits"),
    ],
)
def test_errors_are_one_line_with_status_2(here: Path, arguments: list[str], message: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in result.output.splitlines()[-1]
    assert list(here.iterdir()) == []
