"""Entropies, states and reports from counts: hand-computed tables first."""

import json
import math

import pytest
import torch

from layercollapse import LayerCollapseError
from layercollapse.entropy.layer import STATES, LayerEntropy
from layercollapse.entropy.report import EntropyReport
from layercollapse.ops import SignPatterns, sign_patterns
from probed import layer

Q = 2 - 0.75 * math.log2(3)  # H(1/4) in bits


def report(*rows):
    return EntropyReport([layer(row, name=f"relu{i}") for i, row in enumerate(rows)])


def test_merge_adds_counts():
    a, b = report([[1, 2, 3, 0]], [[0, 0, 9, 0]]), report([[10, 0, 0, 0]], [[0, 0, 1, 0]])
    merged = a.merge(EntropyReport(b.layers[::-1]))
    assert [x.counts.tolist() for x in merged] == [[[11, 2, 3, 0]], [[0, 0, 10, 0]]]
    assert a["relu0"].counts.tolist() == [[1, 2, 3, 0]]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (report([[1, 0, 0, 0]]), "relu1 in one only"),
        (report([[1, 0, 0, 0]], [[1, 0, 0, 0]] * 2), r"relu with counts \(1, 4\), got relu with \(2, 4\)"),
        (
            EntropyReport([layer([[1, 0, 0, 0]], "relu0"), layer([[1, 0, 0, 0]], "relu1", kind="gelu")]),
            r"'relu1' as relu .* got gelu",
        ),
    ],
)
def test_merge_refuses_other_sites(other, message):
    with pytest.raises(LayerCollapseError, match=message):
        report([[1, 0, 0, 0]], [[1, 0, 0, 0]]).merge(other)


def test_json_is_lossless():
    big = 2**62 + 1
    it = EntropyReport(
        [
            layer([[big, 0, 3, 0], [0, 1, 2, 0]], "a", zeros="off", average="active"),
            layer([[1, 2, 3, 0, 2]], "b#2", kind="relu6"),
            LayerEntropy("empty", "relu", torch.zeros(0, 4, dtype=torch.int64)),
        ]
    )
    back = EntropyReport.from_json(it.to_json())
    for old, new in zip(it, back, strict=True):
        assert (old.name, old.kind, old.zeros, old.average) == (new.name, new.kind, new.zeros, new.average)
        assert torch.equal(old.counts, new.counts)


GOOD = json.loads(report([[1, 2, 3, 0]]).to_json())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the JSON of an entropy report"),
        (report([[1, 2, 3, 0]]).to_json()[:-9], "expected the JSON"),
        (b"\xff\xfe\x00", "expected the JSON"),
        (None, "expected the JSON"),
        ("[" * 100_000, "expected the JSON"),
        ("[]", '"format"'),
        (json.dumps(GOOD | {"version": 2}), "expected version 1, got 2"),
        (json.dumps(GOOD | {"layers": {}}), "expected a list, got dict"),
        (json.dumps(GOOD | {"layers": [{"name": "a"}]}), "expected objects with name, kind"),
        (json.dumps(GOOD | {"layers": GOOD["layers"] * 2}), "relu0 more than once"),
        *[
            (json.dumps(GOOD | {"layers": [GOOD["layers"][0] | {"counts": counts}]}), message)
            for counts, message in [
                ([[1, 2, 3.5, 0]], "rows of integers"),
                ([[1, 2, True, 0]], "rows of integers"),
                ([[1, 2, 2**63, 0]], "rows of integers"),
                ([[1, 2, -3, 0]], "rows of integers"),
                ([[1, 2, 3, 0], [1, 2]], "rows of one length"),
                ([[1, 2, 3]], r"expected int64 \(C, 4\) or \(C, 5\)"),
                ([[1, 2, 3, 1]], "NaN in 1 of 1 neurons"),
                ([[1, 2, 3, 0, 4]], "upper bend"),
            ]
        ],
        (json.dumps(GOOD | {"layers": [GOOD["layers"][0] | {"zeros": "maybe"}]}), "zeros: expected one of 'ignore'"),
        (json.dumps(GOOD | {"layers": [GOOD["layers"][0] | {"average": [1]}]}), "average: expected one of 'all'"),
    ],
)
def test_json_that_is_not_a_report(text, message):
    with pytest.raises(LayerCollapseError, match=message):
        EntropyReport.from_json(text)


def test_unknown_site_lists_the_known_ones():
    with pytest.raises(LayerCollapseError, match=r"expected one of the report's sites \(relu0, relu1\), got 'relu2'"):
        report([[1, 0, 0, 0]], [[1, 0, 0, 0]])["relu2"]


def test_table_shows_every_site():
    text = report([[4, 0, 4, 0]], [[0, 0, 1_000_000, 0]]).table()
    lines = text.splitlines()
    assert lines[0].split() == ["site", "kind", "neurons", "samples", "entropy", *STATES]
    assert lines[2].split() == ["relu0", "relu", "1", "8", "1.0000", "0", "0", "1", "0"]
    assert lines[3].split() == ["relu1", "relu", "1", "1,000,000", "0.0000", "0", "1", "0", "0"]
    assert lines[-1] == "1 of 2 sites have no mixed neuron: relu1"
    assert EntropyReport([]).table().endswith("0 of 0 sites have no mixed neuron")


def test_viewed_changes_conventions_only():
    it = report([[6, 2, 0, 0], [4, 0, 4, 0]])
    assert it.viewed("on", "active")["relu0"].mean == pytest.approx((Q + 1) / 2)
    assert it["relu0"].mean == 0.5


# --- patterns ---------------------------------------------------------------------------------------------


def with_patterns(x, **conventions):
    return layer([[1, 0, 1, 0]] * x.shape[1], patterns=sign_patterns(x), **conventions)


def test_patterns_are_in_the_table_in_json_and_in_merges():
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [1.0, 1.0], [1.0, 1.0]])
    report = EntropyReport([with_patterns(signs)])
    assert report.table().splitlines()[0].endswith("mixed  saturated  patterns  their entropy")
    assert report.table().splitlines()[2].endswith("2         0.8113")
    again = EntropyReport.from_json(report.to_json())
    assert again["relu"].patterns.hashes.tolist() == report["relu"].patterns.hashes.tolist()
    merged = report.merge(EntropyReport([with_patterns(-signs)])).viewed(zeros="off")
    assert (merged["relu"].patterns.rows, merged["relu"].patterns.distinct) == (8, 4)
    with pytest.raises(LayerCollapseError, match="other: expected patterns in both reports or in none, got one at"):
        report.merge(EntropyReport([layer([[1, 0, 1, 0]] * 2)]))


def test_estimates_say_so_in_the_table():
    x = torch.randn(500, 20, generator=torch.Generator().manual_seed(0))
    patterns = sign_patterns(x, state=SignPatterns.empty(20, capacity=16))
    report = EntropyReport([layer([[1, 0, 1, 0]] * 20, patterns=patterns)])
    assert f"  ~{patterns.distinct:,}  " in report.table()
    assert EntropyReport.from_json(report.to_json()).table() == report.table()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p | {"rows": 3}, "rows: expected those of the counts, 4, got 3"),
        (lambda p: p | {"counts": [3.0, 1]}, "patterns of 'relu': expected integers"),
        (lambda p: p | {"hashes": p["hashes"][::-1]}, "hashes, counts: expected ascending"),
        (lambda p: {"rows": 4}, "patterns of 'relu': expected integers"),
        (lambda p: 7, "patterns of 'relu': expected integers"),
    ],
)
def test_damaged_patterns(change, message):
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [1.0, 1.0], [1.0, 1.0]])
    data = json.loads(EntropyReport([with_patterns(signs)]).to_json())
    data["layers"][0]["patterns"] = change(data["layers"][0]["patterns"])
    with pytest.raises(LayerCollapseError, match=message):
        EntropyReport.from_json(json.dumps(data))


def test_a_report_written_by_an_earlier_release_is_read():
    layer = {"name": "act", "kind": "relu", "zeros": "ignore", "average": "all", "counts": [[1, 0, 3, 0]]}
    written = json.dumps({"format": "layercollapse.entropy", "version": 1, "layers": [layer]})
    assert EntropyReport.from_json(written)["act"].count("mixed") == 1
