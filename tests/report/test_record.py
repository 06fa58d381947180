"""The record of a run, in memory and in its file."""

import json

import pytest
import torch

from layercollapse.errors import LayerCollapseError
from layercollapse.report.record import Record, histogram
from records import make_record


def test_metrics_have_the_agreed_keys():
    metrics = json.loads(json.dumps(make_record().metrics()))
    side = {"top1", "depth", "parameters", "macs", "file_mib", "latency_ms"}
    assert set(metrics) == {"sites_total", "sites_collapsed", "max_abs_error", "before", "after", "steps"}
    assert set(metrics["before"]) == set(metrics["after"]) == side
    assert (metrics["sites_total"], metrics["sites_collapsed"]) == (3, 2)
    assert metrics["before"]["latency_ms"] == {"1": 2.0, "64": 20.0}
    assert metrics["steps"][1] == {"step": 1, "density": 0.5, "top1_validation": 98.0, "sites_collapsed": 1}


def test_record_survives_its_file(tmp_path):
    record = make_record()
    record.save(tmp_path)
    assert Record.load(tmp_path) == record
    assert json.loads((tmp_path / "metrics.json").read_text()) == record.metrics()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "run.json"]


def test_unfinished_record_has_no_metrics(tmp_path):
    make_record(finished=False).save(tmp_path)
    assert Record.load(tmp_path) == make_record(finished=False)
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "run: expected a folder with run.json"),
        ("{", "run: expected a JSON file"),
        ("{}", "run: expected a record of this version"),
        ("[]", "run: expected a record of this version"),
    ],
)
def test_damaged_records(tmp_path, text, message):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(LayerCollapseError, match=message):
        Record.load(tmp_path)


def test_histogram_by_hand():
    entropy = torch.tensor([0.0, 0.0, 1e-9, 0.1, 0.11, 1.0, 1.58])
    assert histogram(entropy) == [2, 2, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert histogram(torch.zeros(0)) == 11 * [0]
