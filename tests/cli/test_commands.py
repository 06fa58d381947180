import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner

from layercollapse._util.files import free_folder
from layercollapse.cli.commands import layercollapse
from layercollapse.zoo.data.cifar import TEST, TRAIN

MINE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(nn.Module):
    def __init__(self, num_classes, hidden):
        super().__init__()
        self.fc1 = nn.Linear(5, hidden)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, x):
        return self.fc2(self.relu(self.fc1(x)))

def loaders():
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long() + (x[:, 2] > 0).long())
    return tuple(DataLoader(data, batch_size=10, shuffle=part == 0) for part in range(3))
"""
SMALL = ["--data", "digits", "--model", "mlp", "--width", "2", "--epochs", "1"]


pytestmark = pytest.mark.usefixtures("one_thread")


def call(*arguments):
    return CliRunner().invoke(layercollapse, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of the command line: its folder and what it printed."""
    out = tmp_path_factory.mktemp("cli") / "run"
    result = call("run", *SMALL, "--steps", 2, "--max-drop", 100, "--out", out)
    assert result.exit_code == 0, result.output
    return out, result.output


def test_run_prints_every_step_the_table_and_the_files(made):
    out, output = made
    assert "mlp, width 2" in output
    assert re.findall(r"^step (\d)", output, re.MULTILINE) == ["0", "1", "2"]
    for label in ("top-1 on the test split", "rectifier sites", "depth", "parameters", "MACs", "file", "batch 64"):
        assert label in output
    assert re.search(r"max abs error \S+ over 359 samples, 359 of 359 predictions identical", output)
    for name in ("report.html", "model.safetensors", "metrics.json"):
        assert str(out / name) in output
        assert (out / name).is_file()
    assert max(map(len, output.splitlines()[1:4])) <= 80


def test_a_network_that_is_trained_already(made, tmp_path):
    weights = made[0] / "checkpoints" / "step-00.safetensors"
    out = tmp_path / "run"
    result = call(
        "run",
        *SMALL,
        "--steps",
        1,
        "--max-drop",
        0,
        "--amount",
        0.9,
        "--weights",
        weights,
        "--max-layer-share",
        0.5,
        "--out",
        out,
    )
    assert result.exit_code == 0, result.output
    first, again = (json.loads((folder / "run.json").read_text()) for folder in (made[0], out))
    assert again["steps"][0]["top1_validation"] == first["steps"][0]["top1_validation"]
    assert again["steps"][1]["density"] == pytest.approx(0.5, abs=0.01)
    assert (again["settings"]["train_first"], again["settings"]["weights"]) == (False, str(weights))


def test_the_recipe_of_a_run_makes_it_again(made, tmp_path):
    result = call("run", made[0] / "recipe.yaml", "--out", tmp_path / "again")
    assert result.exit_code == 0, result.output
    first, again = (json.loads((folder / "run.json").read_text()) for folder in (made[0], tmp_path / "again"))
    assert [s | {"seconds": 0} for s in again["steps"]] == [s | {"seconds": 0} for s in first["steps"]]
    assert again["settings"] == first["settings"]


def test_resuming_takes_the_recipe_of_the_run(tmp_path):
    out = tmp_path / "run"
    assert call("run", *SMALL, "--steps", 1, "--max-drop", 100, "--out", out).exit_code == 0
    result = call("run", "--resume", "--out", out, "--steps", 2)
    assert result.exit_code == 0, result.output
    assert re.findall(r"^step (\d)", result.output, re.MULTILINE) == ["2"]


def test_the_steps_are_logged_and_a_resumed_run_goes_on_with_its_log(tmp_path):
    files = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    out = tmp_path / "run"
    assert call("run", *SMALL, "--steps", 1, "--max-drop", 100, "--out", out, "--log", "tensorboard").exit_code == 0
    assert "log:\n- tensorboard\n" in (out / "recipe.yaml").read_text()
    assert call("run", "--resume", "--out", out, "--steps", 2).exit_code == 0
    logged = {}
    for file in sorted((out / "tensorboard").glob("events.*")):
        for event in files.LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                logged.setdefault(value.tag, []).append((event.step, pytest.approx(value.simple_value)))
    metrics = json.loads((out / "metrics.json").read_text())
    for key in ("top1_validation", "density", "sites_collapsed"):
        assert [(step["step"], step[key]) for step in metrics["steps"]] == logged[key]
    assert len(logged["entropy/layers.relu4"]) == 3
    assert len(logged["before and after/text_summary"]) == 2  # the second of the run as it ended now


def test_the_recipe_is_printed_with_what_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("run", "vgg16_bn-digits", "steps=3", "--max-drop", 2, "--print-recipe")
    assert result.exit_code == 0
    values = {line for line in result.output.splitlines() if line and not line.startswith("#")}
    assert {"model: vgg16_bn", "epochs: 10", "steps: 3", "max_drop: 2.0", "amount: 0.5"} <= values
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_of_the_package_with_other_values(tmp_path):
    """CIFAR-10's format, colours, milestones: everything but the network's size as the recipe says."""
    for name in (*TRAIN, TEST):
        batch = {b"data": np.random.default_rng(0).integers(0, 256, (20, 3072), np.uint8), b"labels": [0, 1] * 10}
        (tmp_path / name).write_bytes(pickle.dumps(batch, 2))
    out = tmp_path / "run"
    values = [f"data=cifar10:{tmp_path}", "model=mlp", "width=1", "epochs=2", "milestones=1", "steps=1", "max_drop=100"]
    result = call("run", "paper-mobilenet_v2", *values, "--out", out)
    assert result.exit_code == 0, result.output
    assert "on cifar10 (90 / 10 / 20 images)" in result.output
    assert "trained by sgd, learning rate 0.1, milestones, batches of 128" in result.output
    settings = json.loads((out / "run.json").read_text())["settings"]
    assert (settings["milestones"], settings["weight_decay"], settings["batch_size"]) == ([1], 1e-4, 128)
    assert call("collapse", out).exit_code == 0


def test_loaders_and_a_network_of_the_users(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_job_of_commands.py").write_text(MINE)
    out = tmp_path / "run"
    names = ["--data", "my_job_of_commands:loaders", "--model", "my_job_of_commands:Net", "--model-args", "hidden=6"]
    result = call("run", *names, "--epochs", 1, "--steps", 1, "--max-drop", 100, "--out", out)
    assert result.exit_code == 0, result.output
    assert "my_job_of_commands:Net (64 parameters) on loaders (40 / 40 / 40 samples)" in result.output
    assert "trained by adamw, learning rate 0.001, one-cycle" in result.output
    for command in (["analyze", out], ["collapse", out, "--explain"]):
        result = call(*command)
        assert result.exit_code == 0, result.output
        assert "relu" in result.output


def test_texts(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("tokenizers")
    rows = [
        {"text": f"word{i % 7} {'good' if i % 2 else 'bad'}", "label": "ham" if i % 2 else "spam"} for i in range(60)
    ]
    (tmp_path / "mail.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "run"
    keys = ["--data", f"jsonl:{tmp_path / 'mail.jsonl'}", "--model", "bert", "--width", 16, "--tokens", 6]
    args = ["--model-args", "num_hidden_layers=1", "--model-args", "hidden_act=relu"]
    result = call("run", *keys, *args, "--epochs", 1, "--steps", 1, "--max-drop", 100, "--out", out)
    assert result.exit_code == 0, result.output
    assert "classes: ham, spam" in result.output
    assert (out / "tokenizer.json").is_file()
    counts = json.loads((out / "entropy.json").read_text())["layers"][0]["counts"]
    assert {sum(neuron) for neuron in counts} == {42 * 4}  # start, two words, end: padding is not counted
    assert call("collapse", out).exit_code == 0


def test_metrics_are_of_this_run(made):
    metrics = json.loads((made[0] / "metrics.json").read_text())
    assert metrics["sites_total"] == 4
    assert [step["step"] for step in metrics["steps"]] == [0, 1, 2]
    assert metrics["steps"][2]["density"] == pytest.approx(0.25, abs=0.01)
    assert 0 <= metrics["before"]["top1"] <= 100
    assert set(metrics["after"]["latency_ms"]) == {"1", "64"}


def test_report_is_rebuilt_from_the_record(made):
    out, _ = made
    before = (out / "report.html").read_text()
    (out / "report.html").unlink()
    (out / "metrics.json").unlink()
    result = call("report", out)
    assert result.exit_code == 0
    assert (out / "report.html").read_text() == before
    assert (out / "metrics.json").is_file()


def test_runs_are_compared(made):
    result = call("report", made[0], made[0])
    assert result.exit_code == 0
    assert result.output.count("prune (nepenthe)") == 2
    assert "top-1 on test, %" in result.output


def test_analyze_prints_the_entropy_of_the_chosen_model(made, tmp_path):
    result = call("analyze", made[0], "--json", tmp_path / "entropy.json")
    assert result.exit_code == 0, result.output
    for site in ("layers.relu1", "layers.relu4"):
        assert site in result.output
    assert json.loads((tmp_path / "entropy.json").read_text()) == json.loads((made[0] / "entropy.json").read_text())


def test_analyze_without_a_run_trains_first():
    result = call("analyze", *SMALL, "--patterns")
    assert result.exit_code == 0, result.output
    assert "layers.relu1" in result.output
    assert "their entropy" in result.output


def test_run_counts_patterns_for_the_report(tmp_path):
    result = call("run", *SMALL, "--steps", 1, "--max-drop", 100, "--patterns", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    steps = json.loads((tmp_path / "run" / "run.json").read_text())["steps"]
    assert all(len(step["patterns"]) == 4 and step["patterns"][0]["exact"] for step in steps)
    assert "Sign patterns per site" in (tmp_path / "run" / "report.html").read_text()


def test_collapse_again_gives_the_same_model(made):
    out, _ = made
    before = json.loads((out / "metrics.json").read_text())
    result = call("collapse", out, "--explain")
    assert result.exit_code == 0, result.output
    assert "layers.relu1" in result.output
    after = json.loads((out / "metrics.json").read_text())
    for key in ("sites_collapsed", "steps"):
        assert after[key] == before[key]
    for side in ("before", "after"):
        assert {k: v for k, v in after[side].items() if k != "latency_ms"} == {
            k: v for k, v in before[side].items() if k != "latency_ms"
        }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--data", "fashion-mnist", "--data-dir", "/nowhere"], "apt-get install dataset-fashion-mnist"),
        (["run", "--data", "digits", "--data-dir", "/tmp"], "data: expected 'digits' without a folder or file"),
        (["run", *SMALL, "--out", "/dev/null/x"], "out: expected a folder that can be written"),
        (["run", *SMALL, "--epochs", "0"], "epochs: expected at least 1, got 0"),
        (["run", *SMALL, "--amount", "2"], "amount: expected"),
        (["run", *SMALL, "--width", "0"], "width: expected at least 1"),
        (["run", *SMALL, "--device", "abacus"], "device: expected one that works here, got 'abacus'"),
        (["run", *SMALL, "--weights", "/nowhere"], "weights: expected safetensors, or a state dict"),
        (["run", *SMALL, "--max-layer-share", "2"], "max_layer_share: expected a fraction in (0, 1], got 2.0"),
        (["run", "--data", "cifar"], "data: expected one of digits"),
        (["run", "--data-dir", "/nowhere"], "data: expected a folder of IDX files, got /nowhere"),
        (["run", "--model", "mlq"], "model: expected one of resnet18"),
        (["run", *SMALL, "--log", "tensorbord"], "log: expected one of tensorboard, wandb, got 'tensorbord'"),
        (["run", "epoch=3"], "did you mean 'epochs'?"),
        (["run", "mine.yaml"], "recipe: expected a YAML file, got 'mine.yaml'"),
        (["report", "/nowhere"], "run: expected a folder with run.json in it, got /nowhere"),
        (["analyze", "/nowhere"], "model: expected a folder with run.json"),
        (["collapse", "/nowhere"], "run: expected a folder with run.json"),
    ],
)
def test_errors_are_one_line_with_status_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert [line for line in result.output.splitlines() if line.startswith("Error: ")] == [
        result.output.splitlines()[-1]
    ]
    assert "Traceback" not in result.output


def test_run_does_not_overwrite(made):
    result = call("run", *SMALL, "--out", made[0])
    assert result.exit_code == 2
    assert "out: expected a folder without a run" in result.output


def test_default_folders_do_not_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for expected in ("runs/digits-mlp", "runs/digits-mlp-2", "runs/digits-mlp-3"):
        folder = free_folder("digits-mlp")
        assert str(folder) == expected
        folder.mkdir(parents=True)


def test_bench_prints_and_writes_the_rows(tmp_path):
    result = call("bench", "--entries", 1000, "--repeats", 1, "--json", tmp_path / "rows.json")
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "rows.json").read_text())
    lines = [line for line in result.output.splitlines() if line.startswith("  ") and "the floor" not in line]
    for row, line in zip(rows, lines, strict=True):
        assert line.split(f"{row['ms']:,.3f}")[0].strip() == row["provider"]
        assert row["ms"] > 0
        assert row["op"] in result.output


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_ends_cleanly(tmp_path):
    command = [sys.executable, "-m", "layercollapse", "run", *SMALL, "--steps", "500", "--max-drop", "100"]
    # Where a script started the tests in the background they ignore the signal, and so would what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*command, "--epochs", "3", "--amount", "0.01", "--out", str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )
    signal.signal(signal.SIGINT, before)
    record = tmp_path / "run" / "run.json"
    end = time.monotonic() + 120
    while not record.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert "Interrupted: going on to the collapse" in output
    for name in ("model.safetensors", "model.pt2", "metrics.json"):
        assert (tmp_path / "run" / name).is_file()
    assert "interrupted" in (tmp_path / "run" / "report.html").read_text()
