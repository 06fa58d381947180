"""The lines of a run, where its bar stands, on a terminal and in a notebook, and that it goes whatever happens."""

import io
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from layercollapse.pipeline.events import Event
from layercollapse.pipeline.progress import ProgressBar
from records import make_record

pytest.importorskip("rich")
from rich.console import Console


@pytest.fixture
def display():
    console = Console(file=io.StringIO(), width=120)
    # 2 prunings, trainings of 3 epochs of 10 steps: (3 + 0.4) · 10 units for each of 3 steps, and 2 · 10 for the end
    return ProgressBar(console, steps=2, epochs=3, batches=10)


def shown(display):
    return display.console.file.getvalue()


def test_the_bar_counts_training_steps_and_is_put_right_at_each_stage(display):
    task = display.progress.tasks[0]
    assert task.total == pytest.approx(3 * 34 + 20)
    with display:
        display.show(Event("train", 0, make_record(0, finished=False)))
        assert task.description == "step 0 of 2: training"
        display.tick()
        display.tick()
        assert task.completed == 2
        display.show(Event("step", 0, make_record(1, finished=False)))
        assert task.completed == pytest.approx(34)
        display.show(Event("measure", 1, make_record(1, finished=False)))
        assert task.description == "step 1 of 2: measuring entropy"
        display.show(Event("collapse", 1, make_record(2, finished=False)))
        assert task.completed == pytest.approx(3 * 34)
        assert task.description == "collapsing and comparing"


def test_a_line_for_every_step(display):
    record = make_record(1, finished=False)
    display.show(Event("step", 0, record))
    assert shown(display).splitlines() == [
        "step 0  kept 100.00 %  validation  97.00 %          linear  0 of 3     1.5 s"
    ]
    record = make_record(2, finished=False)
    record.steps[1].emptied, record.steps[1].guarded = 2, ["relu"]
    display.show(Event("step", 1, record))
    assert shown(display).splitlines()[1:] == [
        "step 1  kept  50.00 %  validation  98.00 % (+1.00)  linear  1 of 3     1.5 s",
        "        2 sites lost the last of their weights, the guard kept weights at 1 site",
    ]


def test_why_it_ends_is_said_once(display):
    record = make_record(2, finished=False)
    record.stopped = "accuracy below the budget"
    display.show(Event("collapse", 1, record))
    assert shown(display) == "Stopped early: accuracy below the budget.\n"
    record.interrupted = True
    display.show(Event("interrupted", 2, record))
    display.show(Event("collapse", 1, record))
    assert shown(display).splitlines()[1:] == [
        "Interrupted: going on to the collapse with steps 0 to 1. Ctrl-C again ends at once."
    ]


def counted(bar, record, step, count, other=None):
    """A training of so many optimizer steps, of which the run tells."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.ones(1)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    bar(Event("train", step, record(step)))
    for _ in range(count):
        optimizer.step()
    bar(Event("measure", step, record(step)))
    optimizer.step()  # of whoever evaluates: not counted
    bar(Event("step", step, record(step + 1)))


def with_steps(steps):
    record = make_record(steps, finished=False)
    record.settings["steps"] = 2
    return record


def test_without_numbers_the_optimizers_are_counted():
    bar = ProgressBar(Console(file=io.StringIO(), width=120))
    task = bar.progress.tasks[0]
    bar(Event("train", 0, with_steps(0)))
    assert task.total is None  # nobody knows yet
    bar.close()
    counted(bar, with_steps, 0, 10)
    # 5 epochs of 2 steps each: as in the test above, for 2 prunings
    assert task.total == pytest.approx(3 * (5 + 0.4) * 2 + 2 * 2)
    assert task.completed == pytest.approx(10.8)
    bar(Event("train", 1, with_steps(1)))
    assert (task.completed, task.description) == (pytest.approx(10.8), "step 1 of 2: training")
    counted(bar, with_steps, 1, 7)
    assert task.completed == pytest.approx(21.6)
    bar(Event("done", 1, with_steps(2)))
    assert bar._hook is None


def test_a_network_that_is_trained_already_teaches_nothing():
    def trained(steps):
        record = with_steps(steps)
        record.settings["train_first"] = False
        return record

    bar = ProgressBar(Console(file=io.StringIO(), width=120))
    counted(bar, trained, 0, 0)
    assert bar.batches is None
    counted(bar, trained, 1, 10)
    assert bar.batches == 2


def test_a_bar_on_a_terminal_is_taken_away():
    file = io.StringIO()
    with ProgressBar(Console(file=file, width=100, force_terminal=True), steps=2, epochs=3, batches=10) as bar:
        bar.tick()
        assert bar.progress.live.is_started
    assert not bar.progress.live.is_started
    assert "starting" in file.getvalue()
    bar.close()  # twice is no error


class Output:
    """What IPython.display.display gives back for an output that may be written anew."""

    def __init__(self):
        self.written = []

    def display(self, data, raw, display_id):
        assert raw
        assert display_id
        self.written.append(data)
        return self

    def update(self, data, raw):
        assert raw
        self.written.append(data)


def test_in_a_notebook_one_output_is_written_anew(monkeypatch):
    output, module = Output(), ModuleType("IPython.display")
    module.display = output.display
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    # What rich itself prints in a notebook goes the same way; here it is a file's.
    console = Console(file=io.StringIO(), width=120)
    console.is_jupyter = True
    monkeypatch.setattr(console, "print", lambda *_, **__: None)
    bar = ProgressBar(console, steps=2, epochs=3, batches=10)
    bar(Event("train", 1, with_steps(1)))
    for _ in range(100):  # half a second is not over
        bar.tick()
    assert len(output.written) == 2
    assert output.written[1]["text/plain"].startswith("step 1 of 2: training, 0 %, elapsed 0:0")
    monkeypatch.setattr("layercollapse.pipeline.progress.SECONDS", 0)
    bar.tick()
    assert 'value="101" max="122"' in output.written[-1]["text/html"]
    assert "left 0:0" in output.written[-1]["text/plain"]
    bar(Event("done", 1, with_steps(2)))
    assert output.written[-1] == {"text/plain": ""}
