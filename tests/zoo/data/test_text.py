"""Texts in CSV, TSV and JSON lines: columns, classes, parts, and which line is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo.data import load

pytest.importorskip("tokenizers")


def lines(count: int = 40) -> list[dict]:
    return [
        {"text": f"word{i} {'good' if i % 4 else 'bad'}", "label": "ham" if i % 4 else "spam"} for i in range(count)
    ]


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        mark = "," if path.suffix == ".csv" else "\t"
        path.write_text(
            "\n".join(mark.join(map(str, row)) for row in [list(rows[0]), *(r.values() for r in rows)]) + "\n"
        )
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_file_is_divided(tmp_path: Path, kind: str) -> None:
    file = write(tmp_path / f"mail.{kind}", lines())
    found = load(f"{kind}:{file}", tokens=8)
    assert (found.name, found.kind, found.classes, found.num_classes) == ("mail", "texts", ("ham", "spam"), 2)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [28, 4, 8]
    assert int(found.test.labels.sum()) == 2
    words = found.text.tokenizer.get_vocab()
    for inputs, labels in found.test.batches(3):
        assert inputs["input_ids"].shape == (len(labels), 8)
        assert torch.equal((inputs["input_ids"] == words["bad"]).any(1), labels == 1)
    assert found.text.vocabulary <= 4 + 28 + 2  # words of the training part alone


def test_a_folder_of_parts_as_glue_has_them(tmp_path: Path) -> None:
    """Quotes are signs like others, and the test part has no labels."""
    head = "sentence1\tsentence2\tlabel\n"
    (tmp_path / "train.tsv").write_text(head + "".join(f'"a {i}\tb\t{i % 2}\n' for i in range(20)))
    (tmp_path / "dev.tsv").write_text(head + "a\tb\t1\n")
    (tmp_path / "test.tsv").write_text("sentence1\tsentence2\na\tb\n")
    found = load(f"tsv:{tmp_path}", text="sentence1,sentence2", tokens=8)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [16, 1, 4]
    assert found.classes == ()
    assert "token_type_ids" in found.train.inputs
    assert found.notes == ("test.tsv has no labels, and is not used", "test: 20 % of the training data")


def test_csv_has_quotes_and_lines_within(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("label,text\n" + '2,"good, ""very""\ngood"\n10,bad\n' * 10)
    found = load(f"csv:{file}", tokens=8)
    assert found.classes == (2, 10)
    assert found.notes[-1] == "texts of validation and test that are in the training part, too: 6"


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("jsonl", '{"text": "a", "label": 1}\n{"text": \n', "expected JSON in line 2 of .*a.jsonl"),
        ("jsonl", '{"text": "a", "label": 1}\n\n[1]\n', "expected an object in line 3 of .*a.jsonl, got list"),
        (
            "jsonl",
            '{"text": "a", "label": 1}\n{"text": 3, "label": 0}\n',
            "text: expected a text in line 2 of .*, got 3",
        ),
        (
            "jsonl",
            '{"text": "a", "label": 1}\n{"text": "b"}\n',
            "label: expected a column 'label' in line 2 of .*'text'",
        ),
        ("jsonl", '{"text": "a", "label": [1]}\n', r"label: expected a name or a number in line 1 of .*, got \[1\]"),
        ("jsonl", '{"text": "a", "label": 1}\n', "label: expected at least two classes in .*, got 1"),
        ("jsonl", "", "at least one line with a text in .*a.jsonl, got none"),
        ("csv", "text,label\na,1\nb,0,x\n", "expected 2 columns in line 3 of .*a.csv, got 3"),
        ("csv", "text,label\na,1\nb\n", "expected 2 columns in line 3 of .*a.csv, got 1"),
        ("csv", 'text,label\na,1\n"b,0\n', "cannot read line 3 of .*a.csv: unexpected end of data"),
        ("tsv", "words\tlabel\na\t1\n", "text: expected a column 'text' in line 2 of .*a.tsv, got 'words', 'label'"),
        ("tsv", "text\tlabel\na\t\n", "label: expected a name or a number in line 2"),
    ],
)
def test_the_line_that_is_wrong(tmp_path: Path, kind: str, text: str, message: str) -> None:
    file = tmp_path / f"a.{kind}"
    file.write_text(text)
    with pytest.raises(LayerCollapseError, match=message):
        load(f"{kind}:{file}")


def test_other_things_that_are_wrong(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b"text,label\na,1\n\xff,0\n")
    with pytest.raises(LayerCollapseError, match=r"expected UTF-8 in .*a.csv, got other bytes in line 3"):
        load(f"csv:{file}")
    with pytest.raises(LayerCollapseError, match="expected a csv file or a folder of them, got nowhere"):
        load("csv:nowhere")
    with pytest.raises(LayerCollapseError, match=r"expected a file train.jsonl in "):
        load(f"jsonl:{tmp_path}")
    write(tmp_path / "train.csv", lines())
    write(tmp_path / "test.csv", [{"text": "a", "label": "eggs"}])
    with pytest.raises(LayerCollapseError, match=r"label: expected 'ham', 'spam' in .*test.csv, got 'eggs'"):
        load(f"csv:{tmp_path}")
    with pytest.raises(LayerCollapseError, match="text: expected the name of a column, or of two"):
        load(f"csv:{tmp_path}", text="a,b,c")
