"""Runs that go on: with the same settings, alone in their folder, and clear of what was left half written."""

import functools
import threading

import pytest

from interrupted import EPOCHS, Job, Killed
from layercollapse.errors import LayerCollapseError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_other_settings_or_another_training_are_refused(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Killed):
        Job(kill_in=1).run(out)
    before = {path.name: path.read_bytes() for path in (out / "checkpoints").iterdir()}
    with pytest.raises(LayerCollapseError, match=r"resume: expected the settings .* seed=7 instead of 0"):
        Job().run(out, resume=True, seed=7)

    def shorter(model, checkpoint):
        checkpoint.epochs(2).__next__()

    with pytest.raises(LayerCollapseError, match=r"checkpoint: .* of 3 epochs .* got 2 epochs with nothing"):
        Job().run(out, resume=True, train=shorter)
    assert {path.name: path.read_bytes() for path in (out / "checkpoints").iterdir()} == before
    assert not (out / "run.json").exists()
    job = Job()
    job.run(out)  # a new run, from the beginning
    assert job.seen[:EPOCHS] == [*range(EPOCHS)]


def test_two_runs_in_one_folder(tmp_path):
    inside, go_on = threading.Event(), threading.Event()

    def waits(model):
        inside.set()
        assert go_on.wait(60)

    first = threading.Thread(target=functools.partial(Job().run, tmp_path / "run", train=waits))
    first.start()
    try:
        assert inside.wait(60)
        with pytest.raises(LayerCollapseError, match=r"out: expected a folder that nothing else is writing"):
            Job().run(tmp_path / "run", resume=True)
    finally:
        go_on.set()
        first.join()
    Job().run(tmp_path / "run", resume=True)


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / ".part-run.json.abc").write_text("{")
    (out / ".part-try").mkdir()
    (out / "checkpoints" / ".part-step-00.safetensors.xyz").write_text("")
    (out / "mine.txt").write_text("kept")
    Job().run(out, train=lambda model: None)
    assert not [path for path in out.rglob("*") if ".part" in path.name]
    assert (out / "mine.txt").exists()
