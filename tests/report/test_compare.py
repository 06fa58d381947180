"""Runs side by side: a line for each, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from layercollapse.errors import LayerCollapseError
from layercollapse.report.compare import column, table
from records import make_record


def test_a_column_for_each_run(tmp_path: Path) -> None:
    first, second = make_record(), make_record()
    second.settings |= {"model": "hf:/models/bert", "data": "csv:/mails/a.csv", "strategy": "easier"}
    second.after.latency_ms = {"1": 0.5}
    for name, record in (("a", first), ("b", second)):
        (tmp_path / name).mkdir()
        record.save(tmp_path / name)
    assert column(tmp_path / "a") == {
        "network": "resnet18",
        "data": "digits",
        "strategy": "prune (nepenthe)",
        "top-1 on test, %": "97.25 → 97.75",
        "rectifier sites": "3 → 1",
        "depth": "18 → 14",
        "parameters": "701,178 → 350,589",
        "faster, batch 1": "2.00x",
        "faster, batch 64": "0.80x",
    }
    other = column(tmp_path / "b")
    assert (other["network"], other["strategy"], other["faster, batch 1"]) == ("hf:/models/bert", "easier", "4.00x")
    assert "faster, batch 64" not in other
    cells = [list(cells.cells) for cells in table([tmp_path / "a", tmp_path / "b"]).columns]
    assert [len(one) for one in cells] == [9, 9, 9]
    assert cells[2][-1] == "–"


def test_runs_that_are_none(tmp_path: Path) -> None:
    make_record(2, finished=False).save(tmp_path)
    with pytest.raises(LayerCollapseError, match=r"run: expected a finished run, got .* with 2 steps"):
        column(tmp_path)
    with pytest.raises(LayerCollapseError, match=r"run: expected a folder with run.json in it, got nowhere"):
        table([Path("nowhere")])
