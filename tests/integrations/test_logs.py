"""What is written of a run to TensorBoard and to Weights & Biases, read back from the files."""

from __future__ import annotations

import inspect
import json
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from layercollapse import LayerCollapseError
from layercollapse.integrations.logs import LOGS, TABLE, Log, TensorBoard, WeightsAndBiases
from layercollapse.pipeline.events import Event
from layercollapse.report.record import Record
from records import make_record


def tell(log: Log, folder: Path, steps: int, *, begun: int = 0, done: bool = False) -> None:
    """What a run of so many steps tells, of which some were there before it went on."""
    for step in range(begun, steps):
        log(Event("train", step, make_record(step, finished=False), folder))
        log(Event("step", step, make_record(step + 1, finished=False), folder))
    if done:
        log(Event("collapse", steps - 1, make_record(steps, finished=False), folder))
        log(Event("done", steps - 1, make_record(steps), folder))
    log.close()


def numbers(record: Record) -> dict[str, list[tuple[int, float]]]:
    """What is to be written, from metrics.json's own figures and the entropies."""
    steps = record.metrics()["steps"]
    keys = ("top1_validation", "density", "sites_collapsed")
    written = {key: [(step["step"], step[key]) for step in steps] for key in keys}
    for at, site in enumerate(["relu", "layer1.0.relu", "layer1.0.relu-2"]):
        written[f"entropy/{site}"] = [(step.step, step.entropy[at]) for step in record.steps]
    return written


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar in TensorBoard's files, in the order of writing, also what TensorBoard would hide."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.glob("events.*")):
        for event in loader.LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
                else:
                    found.setdefault(value.tag, []).append((event.step, value.tensor.string_val[0].decode()))
    return found


@pytest.fixture
def tensorboard() -> None:
    pytest.importorskip("tensorboard")


@pytest.mark.usefixtures("tensorboard")
def test_tensorboard_has_the_figures_of_the_metrics(tmp_path: Path) -> None:
    tell(TensorBoard(), tmp_path, 3, done=True)
    found = events(tmp_path / "tensorboard")
    ((step, table),) = found.pop(f"{TABLE}/text_summary")
    assert found == numbers(make_record(3))  # all of them are exact in float32
    assert step == 3
    assert table.splitlines()[:3] == [
        "| of | dense | collapsed | change |",
        "| --- | --- | --- | --- |",
        "| top-1 on the test split | 97.25 % | 97.75 % | +0.50 points |",
    ]


@pytest.mark.usefixtures("tensorboard")
def test_a_resumed_run_writes_no_step_twice(tmp_path: Path) -> None:
    tell(TensorBoard(), tmp_path, 2, done=True)
    log = TensorBoard()
    log(Event("measure", 1, make_record(2, finished=False), tmp_path))
    tell(log, tmp_path, 4, begun=2, done=True)
    tell(TensorBoard(), tmp_path, 4, begun=4, done=True)  # nothing was left to do
    found = events(tmp_path / "tensorboard")
    tables = found.pop(f"{TABLE}/text_summary")
    assert found == numbers(make_record(4))
    assert len(tables) == 1  # the record's two sides are the same after two steps and after four


@pytest.mark.usefixtures("tensorboard")
def test_steps_from_before_the_log_are_written(tmp_path: Path) -> None:
    log = TensorBoard(tmp_path / "mine")
    log(Event("measure", 1, make_record(2, finished=False), tmp_path))
    assert events(tmp_path / "mine")["density"] == [(0, 1.0), (1, 0.5)]
    assert not (tmp_path / "tensorboard").exists()
    log.close()


@pytest.mark.usefixtures("tensorboard")
def test_the_log_of_another_run_is_refused_before_any_training(tmp_path: Path) -> None:
    tell(TensorBoard(tmp_path / "mine"), tmp_path, 2)
    with pytest.raises(LayerCollapseError, match=r"folder: expected one for the log of this run, got .*logged.json"):
        TensorBoard(tmp_path / "mine")(Event("train", 0, make_record(0, finished=False), tmp_path))
    other = make_record(3, finished=False)
    other.steps[1].top1_validation += 0.5
    with pytest.raises(LayerCollapseError, match="folder: expected one for the log of this run"):
        TensorBoard(tmp_path / "mine")(Event("measure", 2, other, tmp_path))
    with pytest.raises(LayerCollapseError, match="folder: expected a folder that can be written"):
        TensorBoard("/dev/null/x")(Event("train", 0, make_record(0, finished=False), tmp_path))


class Broken(Log):
    """A log that fails at step 1."""

    name = "broken"

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def _open(self, event: Event, place: Path) -> None: ...
    def _result(self, record: Record, result: dict[str, Any]) -> None: ...
    def _end(self) -> None: ...
    def _step(self, number: int, numbers: dict[str, float]) -> None:
        if number == 1:
            raise OSError("no space left")
        self.steps.append(number)


def test_what_fails_during_the_run_is_a_warning_once(tmp_path: Path) -> None:
    log = Broken()
    with pytest.warns(UserWarning, match=r"Broken: writing stopped with .*no space left.*; the run goes on") as warned:
        tell(log, tmp_path, 3, done=True)
    assert len(warned) == 1
    assert log.steps == [0]
    assert len(json.loads((tmp_path / "broken" / "logged.json").read_text())["steps"]) == 1


def test_a_log_serves_one_run_after_the_other(tmp_path: Path) -> None:
    log = Broken()
    for name in ("a", "b"):
        tell(log, tmp_path / name, 1)
    assert log.steps == [0, 0]


class Wandb:
    """The part of wandb that is called, with its signatures, which `test_the_calls_fit_wandb` compares."""

    def __init__(self) -> None:
        self.runs: list[SimpleNamespace] = []
        self.Settings = SimpleNamespace
        self.Table = lambda columns=None, data=None: (columns, data)

    def init(self, project=None, dir=None, id=None, name=None, config=None, mode=None, reinit=None, settings=None):
        given = {key: value for key, value in locals().items() if key not in ("self", "settings")}
        run = SimpleNamespace(id=id or f"id{len(self.runs)}", given=given, rows=[], summary={}, finished=False)
        run.log = lambda data, step=None: run.rows.append((step, data))
        run.finish = lambda: setattr(run, "finished", True)
        self.runs.append(run)
        return run


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_weights_and_biases_without_a_network(fake: Wandb, tmp_path: Path) -> None:
    tell(WeightsAndBiases(project="mine"), tmp_path / "ran", 2)
    log = WeightsAndBiases()
    log(Event("measure", 1, make_record(2, finished=False), tmp_path / "ran"))
    tell(log, tmp_path / "ran", 3, begun=2, done=True)
    first, second = fake.runs
    assert (first.given["mode"], first.given["name"], first.given["project"]) == ("offline", "ran", "mine")
    assert first.given["dir"] == str(tmp_path / "ran")
    assert first.given["config"] == make_record().settings
    assert second.given["id"] == first.id  # one run for `wandb sync`
    assert first.finished
    assert second.finished
    assert [step for step, _ in first.rows] == [0, 1]
    (step, row), (end, table) = second.rows
    assert row == {name: dict(values)[2] for name, values in numbers(make_record(3)).items()}
    assert (step, end) == (2, 3)
    columns, rows = table[TABLE]
    assert columns == ["of", "dense", "collapsed", "change"]
    assert rows[1] == ["rectifier sites", "3", "1", "2 collapsed"]
    assert second.summary["after"]["parameters"] == 350589


def test_the_calls_fit_wandb(fake: Wandb) -> None:
    given = inspect.signature(fake.init).parameters
    sys.modules.pop("wandb")
    wandb = pytest.importorskip("wandb")
    assert set(given) <= set(inspect.signature(wandb.init).parameters)
    assert {"data", "step"} <= set(inspect.signature(wandb.Run.log).parameters)
    assert {"columns", "data"} <= set(inspect.signature(wandb.Table.__init__).parameters)
    wandb.Settings(console="off", silent=True)


def records(file: Path) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format in blocks of 32 KiB, behind a header of 7 bytes."""
    data, at, held = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        held += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield held
            held = b""


@pytest.mark.long
def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    proto = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    monkeypatch.setenv("HOME", str(tmp_path))
    tell(WeightsAndBiases(), tmp_path, 2)
    time.sleep(1.1)  # wandb calls its folders by the second
    log = WeightsAndBiases()
    log(Event("measure", 1, make_record(2, finished=False), tmp_path))
    tell(log, tmp_path, 3, begun=2, done=True)
    found: dict[str, list[tuple[int, float]]] = {}
    ids = set()
    for file in sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb")):
        for data in records(file):
            record = proto.Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            for item in record.history.item:
                name = item.key or ".".join(item.nested_key)
                if name[:1] != "_":
                    found.setdefault(name, []).append((record.history.step.num, json.loads(item.value_json)))
    table = {name.removeprefix(f"{TABLE}."): found.pop(name) for name in list(found) if name.startswith(TABLE)}
    assert found == numbers(make_record(3))
    assert (table["nrows"], table["ncols"], len(ids)) == ([(3, 8)], [(3, 4)], 1)


def test_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, log in LOGS.items():
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(LayerCollapseError, match=rf"pip install 'layercollapse\[{name}\]'"):
            log()
