"""The lines of a run on the terminal, and where its bar stands."""

import io

import pytest

from layercollapse.cli.progress import RunDisplay
from layercollapse.pipeline.schedule import Event
from records import make_record

pytest.importorskip("rich")
from rich.console import Console


@pytest.fixture
def display():
    console = Console(file=io.StringIO(), width=120)
    # 2 prunings, trainings of 3 epochs of 10 steps: (3 + 0.4) · 10 units for each of 3 steps, and 2 · 10 for the end
    return RunDisplay(console, steps=2, epochs=3, batches=10)


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
