"""The script behind the table of trained networks: its data, its proofs, its table, without minutes of training."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import layercollapse as lc
from checkout import ROOT
from layercollapse.report.record import Record

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "benchmarks" / "networks.py"
    spec = importlib.util.spec_from_file_location("benchmark_networks", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def test_mail_is_subject_and_body_and_every_message_once(script: ModuleType, tmp_path: Path) -> None:
    def message(number: int, group: str, subject: str, body: str) -> None:
        text = f"From: a{number}@example.org\nSubject: {subject}\nDate: day {number}\n\n{body}"
        (tmp_path / f"{number}.json").write_text(json.dumps({"group": group, "text": text}))

    for number in range(20):
        message(number, "spam-1" if number % 4 == 0 else "easy-ham-1", f"word{number}", "x " * (5 * number))
    message(20, "spam-2", "word0", "")  # the same words as message 0
    (tmp_path / "file_list.json").write_text("[]")
    splits = script.mail(str(tmp_path))
    ids, labels = (torch.cat([split[i] for split in splits.values()]) for i in (0, 1))
    assert [len(split[0]) for split in splits.values()] == [14, 2, 4]
    assert ids.shape == (20, 32)
    assert int(labels.sum()) == 5
    # A token for the start, two for the subject ("word", its number), up to 29 of the body; then padding.
    assert sorted((ids != 1).sum(1).tolist()) == sorted(min(32, 3 + 5 * n) for n in range(20))
    assert bool((ids[:, 0] == 0).all())


@pytest.mark.long
def test_a_network_from_training_to_the_table(script: ModuleType, tmp_path: Path, capsys) -> None:
    row = script.Row("a network", lambda: script.built_in(model="mlp", data="digits", width=1, epochs=1), {"steps": 2})
    out = tmp_path / "made"
    script.measure("mlp", row, out)
    assert capsys.readouterr().out.count("Step(step=") == 3
    first = Record.load(out)
    script.measure("mlp", row, out)  # again: nothing is trained
    assert "Step(step=" not in capsys.readouterr().out
    assert [step.seconds for step in Record.load(out).steps] == [step.seconds for step in first.steps]
    result = script.summary(Record.load(out), out)
    assert [neurons["neurons"] for neurons in result["neurons"]] == [8, 8, 8, 8]
    assert all(n["always"] <= n["in_box"] <= n["steady"] for n in result["neurons"])
    overview, neurons = script.table({"mlp": result}, {"mlp": row}).strip().split("\n\n")
    assert overview.splitlines()[-1].startswith(f"| a network | {result['sites_collapsed']} of 4 | 5 → ")
    assert "359 of 359" in overview
    assert neurons.splitlines()[-1].startswith("| a network | 32 | ")


def test_proofs_that_data_contradict_are_an_error(script: ModuleType, tmp_path: Path) -> None:
    row = script.Row("a network", lambda: script.built_in(model="mlp", data="digits", width=1, epochs=1), {"steps": 0})
    torch.manual_seed(0)
    task = row.task()
    result = lc.run(
        task.model, train=lambda model: None, evaluate=task.evaluate, data=task.data, steps=0, out=tmp_path / "made"
    )
    with pytest.raises(SystemExit, match="contradicts"):
        script.proven(task.model, result, (0.0, 0.0))  # a box of one point: everything is steady there
