"""The sweep over public architectures: its own parts always, the networks with -m architectures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import layercollapse as lc
from checkout import ROOT

FOLDER = ROOT / "benchmarks"
sys.path.insert(0, str(FOLDER))
try:
    import architectures
    import trial
    import zoo
finally:
    sys.path.remove(str(FOLDER))

GOOD = ("right", "refused", "over limit")


@pytest.mark.architectures
@pytest.mark.parametrize("name", [network.name for network in zoo.every()])
def test_an_architecture(name: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, FOLDER / "architectures.py", "--out", tmp_path, name], check=False)
    row = architectures.rows(tmp_path)[name]
    if row["outcome"] == trial.BROKEN:
        pytest.skip(row["reason"])  # another version of its library
    assert row["outcome"] in GOOD, row.get("traceback", architectures.outcome(row))


def network(model: nn.Module, accurate: float = zoo.ACCURATE) -> zoo.Network:
    return zoo.Network("torch/small", lambda: model, lambda count: torch.randn(count, 4, dtype=torch.float64), accurate)


def tried(model: nn.Module) -> dict[str, Any]:
    row: dict[str, Any] = {"name": "torch/small", "commit": "abc"}
    trial.run(network(model), row.update)
    return row


def mlp() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.usefixtures("one_thread")
def test_a_network_goes_through_all_of_it_and_into_the_table() -> None:
    row = tried(mlp())
    assert (row["outcome"], row["sites"], row["fed"], row["density"]) == ("right", 2, 2, 0.25)
    assert row["parameters"] == 40 + 72 + 27
    assert row["depth"][0] == 3
    assert 0 <= row["error"] < 1e-12 < row["spread"]
    line = architectures.markdown([row]).splitlines()[-1].split(" | ")
    assert line[:2] == ["| small", "torch"]
    assert line[2:5] == ["139", "2", "2"]
    assert line[-1] == "right |"


@pytest.mark.usefixtures("one_thread")
def test_a_wrong_network_is_told_from_a_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def bent(*args: Any, **kwargs: Any) -> lc.CollapseResult:
        result = collapse(*args, **kwargs)
        with torch.no_grad():
            next(result.model.parameters()).add_(1e-3)
        return result

    collapse = lc.collapse
    monkeypatch.setattr(lc, "collapse", bent)
    row = tried(mlp())
    assert row["outcome"] == "wrong"
    assert row["reason"].startswith("differs by")


def test_a_network_without_rectifiers_is_right_and_said_not_to_be_pruned() -> None:
    row = tried(nn.Linear(4, 3))
    assert row["outcome"] == "right"
    assert "; not pruned further: model: expected weights that feed a rectifier" in architectures.outcome(row)


def test_what_does_not_run_is_no_fault_of_ours() -> None:
    row = tried(nn.Linear(5, 3))
    assert row["outcome"] == trial.BROKEN
    assert row["reason"].startswith("RuntimeError: mat1 and mat2")


def test_constants_of_an_initialization_are_drawn_and_modes_are_evaluation() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).double()
    nn.init.zeros_(model[0].weight)
    x = torch.randn(8, 4, dtype=torch.float64)
    trial.settle(model, [x, 2 * x])
    assert not model.training
    assert all(len(p.unique()) == p.numel() for p in model.parameters())
    both = torch.stack([model[0](x), model[0](2 * x)])
    torch.testing.assert_close(model[1].running_mean, both.mean((0, 1)))
    torch.testing.assert_close(model[1].running_var, both.var(1).mean(0))
    assert model[1].momentum == 0.1


def test_what_a_process_tells_raises_or_runs_into_is_a_row() -> None:
    def raw(tell) -> None:
        tell(sites=3, outcome="right")
        raise KeyError("left")

    def greedy(tell) -> None:
        tell(held=len(bytearray(2**45)))

    def busy(tell) -> None:
        tell(sites=2, outcome="refused")
        while True:
            pass

    def waiting(tell) -> None:
        time.sleep(60)

    assert architectures.apart(lambda tell: tell(a=1, outcome="right"), 60, 64) == {"a": 1, "outcome": "right"}
    row = architectures.apart(raw, 60, 64)
    assert (row["sites"], row["outcome"]) == (3, "raw")
    assert row["reason"].startswith("KeyError: 'left' (test_architectures.py:")
    assert "raise KeyError" in row["traceback"]
    assert architectures.apart(greedy, 60, 64)["reason"] == "64 GiB of memory"
    row = architectures.apart(busy, 1, 64)
    assert row == {"sites": 2, "outcome": "over limit", "reason": "1 s of CPU time"}
    assert architectures.apart(waiting, 60, 64, slack=1e-3)["outcome"] == "over limit"
    assert architectures.apart(lambda tell: os.kill(os.getpid(), signal.SIGTERM), 60, 64)["reason"].endswith(" -15")


def test_a_kill_loses_no_line_and_the_last_of_a_network_counts(tmp_path: Path) -> None:
    lines = [
        {"name": "a/b", "outcome": "raw"},
        {"name": "a/c", "outcome": "right"},
        {"name": "a/b", "outcome": "right"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / architectures.ROWS).write_text(text + '{"name": "a/d", "outc')
    assert architectures.rows(tmp_path) == {"a/b": lines[2], "a/c": lines[1]}
    assert architectures.rows(tmp_path / "missing") == {}


def test_names_may_be_patterns_and_unknown_ones_are_an_error() -> None:
    found = [zoo.Network(name, mlp, zoo.images) for name in ("timm/resnet26", "timm/vgg11", "torchvision/resnet18")]
    assert architectures.chosen(found, []) == found
    assert architectures.chosen(found, ["timm/*", "*18"]) == found
    assert architectures.chosen(found, ["*/resnet*"]) == [found[0], found[2]]
    with pytest.raises(SystemExit, match="'timm/resnet27'"):
        architectures.chosen(found, ["timm/resnet27"])
