"""Texts in CSV, TSV and JSON lines: a file that is divided, or a folder with a file for each part."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo.data import tokenizer as tokenizers
from layercollapse.zoo.data.split import FRACTIONS, PART_NAMES, DataSet, Split, divide

TOKENS = 64
Row = tuple[int, dict[str, Any]]  # the line that it ends in, and its columns


def load_text(
    path: Path,
    *,
    kind: str,
    text: str = "text",
    label: str = "label",
    tokens: int = TOKENS,
    tokenizer: str | None = None,
    validation_share: float = FRACTIONS[1],
    test_share: float = FRACTIONS[2],
) -> DataSet:
    """Read texts and their labels.

    Args:
        path: a file; or a folder with train, validation (or dev) and test files, of which all but the first may be
            missing, or be without labels, as GLUE's test files are.
        kind: ``"csv"`` and ``"tsv"`` (with a line of names first) or ``"jsonl"`` (an object on every line).
        text: name of the column; two with a comma between, for pairs of texts.
        label: name of the column; the values that occur in the training part are the classes, in order.
        tokens: kept of each text, at most; shorter ones are padded.
        tokenizer: a tokenizer.json, or the folder of a model; by default, the words of the training texts.
        validation_share: of the training texts, where there is no validation part.
        test_share: of the training texts, where there is no test part.

    Raises:
        LayerCollapseError: the file and the line that are not as expected.
    """
    columns = [name.strip() for name in text.split(",")]
    if not 1 <= len(columns) <= 2:
        raise LayerCollapseError(f"text: expected the name of a column, or of two, got {text!r}")
    files, notes = _parts(path, kind), list[str]()
    if path.is_dir() and "train" not in files:
        raise LayerCollapseError(f"data: expected a file train.{kind} in {path}, got none")
    found: dict[str, tuple[list, list]] = {}
    for part, file in files.items():
        table = list(_rows(file, kind))
        if not table:
            raise LayerCollapseError(f"data: expected at least one line with a text in {file}, got none")
        if part != "train" and all(row.get(label) in (None, "") for _, row in table):
            notes.append(f"{file.name} has no labels, and is not used")
            continue
        found[part] = _columns(file, table, columns, label)
    if all(str(name).lstrip("-").isdecimal() for _, labels in found.values() for name in labels):
        found = {part: (texts, list(map(int, labels))) for part, (texts, labels) in found.items()}
    classes = _classes(found["train"][1], path)
    numbers = {name: number for number, name in enumerate(classes)}
    for part, (texts, labels) in found.items():
        if (other := next((name for name in labels if name not in numbers), None)) is not None:
            raise LayerCollapseError(f"label: expected {_shown(classes)} in {files[part]}, got {other!r}")
        found[part] = (texts, [numbers[name] for name in labels])
    notes += divide(found, {"validation": validation_share, "test": test_share})
    seen = set(found["train"][0])
    if again := sum(entry in seen for part in ("validation", "test") for entry in found[part][0]):
        notes.append(f"texts of validation and test that are in the training part, too: {again:,}")
    return from_texts(path.stem, found, classes, tokens=tokens, tokenizer=tokenizer, notes=tuple(notes))


def from_texts(
    name: str,
    parts: dict[str, tuple[list, list[int]]],
    classes: Sequence[Any],
    *,
    tokens: int,
    tokenizer: str | None,
    notes: tuple[str, ...] = (),
) -> DataSet:
    """A data set of texts: each a tuple of one column or two, with the number of its class."""
    train = parts["train"][0]
    words = tokenizers.of_words(entry[: tokenizers.CHARACTERS * tokens] for row in train for entry in row)
    about = tokenizers.about(tokenizers.from_file(tokenizer) if tokenizer else words, tokens)
    splits = {
        part: Split(tokenizers.encoded(about, list(zip(*texts, strict=True))), torch.tensor(labels))
        for part, (texts, labels) in parts.items()
    }
    named = () if list(classes) == list(range(len(classes))) else tuple(classes)
    return DataSet(
        name,
        splits["train"],
        splits["validation"],
        splits["test"],
        len(classes),
        classes=named,
        text=about,
        kind="texts",
        notes=notes,
    )


def _parts(path: Path, kind: str) -> dict[str, Path]:
    """The files of the parts."""
    if path.is_file():
        return {"train": path}
    if not path.is_dir():
        raise LayerCollapseError(f"data: expected a {kind} file or a folder of them, got {path}")
    known = ((part, path / f"{name}.{kind}") for part, names in PART_NAMES.items() for name in reversed(names))
    return {part: file for part, file in known if file.is_file()}


def _rows(file: Path, kind: str) -> Iterator[Row]:
    """The rows of a file, and the lines they end in."""
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        place = file.read_bytes()[: error.start].count(b"\n") + 1
        raise LayerCollapseError(f"data: expected UTF-8 in {file}, got other bytes in line {place}") from error
    if kind == "jsonl":
        for number, line in enumerate(content.split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise LayerCollapseError(f"data: expected JSON in line {number} of {file}, got: {error}") from error
            if not isinstance(row, dict):
                raise LayerCollapseError(
                    f"data: expected an object in line {number} of {file}, got {type(row).__name__}"
                )
            yield number, row
        return
    csv.field_size_limit(max(csv.field_size_limit(), len(content) + 1))
    lines = io.StringIO(content, newline="")
    # TSV has no quotes, as in GLUE: a text may begin with one.
    tsv = kind == "tsv"
    reader = (
        csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tsv else csv.DictReader(lines, strict=True)
    )
    try:
        for row in reader:
            if None in row or None in row.values():
                columns = len(reader.fieldnames or ())
                got = columns + len(row[None]) if None in row else sum(value is not None for value in row.values())
                raise LayerCollapseError(
                    f"data: expected {columns} columns in line {reader.line_num} of {file}, got {got}"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise LayerCollapseError(f"data: cannot read line {reader.reader.line_num} of {file}: {error}") from error


def _columns(file: Path, table: list[Row], columns: list[str], label: str) -> tuple[list, list]:
    """The texts, as tuples, and the labels of a file's rows."""
    texts, labels = [], []
    for number, row in table:
        for argument, name in [*(("text", name) for name in columns), ("label", label)]:
            if name not in row:
                raise LayerCollapseError(
                    f"{argument}: expected a column {name!r} in line {number} of {file}, got {_shown(list(row))}"
                )
        values = [row[name] for name in columns]
        if wrong := next((value for value in values if not isinstance(value, str)), None):
            raise LayerCollapseError(f"text: expected a text in line {number} of {file}, got {wrong!r}")
        if not isinstance(row[label], str | int) or row[label] == "":
            raise LayerCollapseError(
                f"label: expected a name or a number in line {number} of {file}, got {row[label]!r}"
            )
        texts.append(tuple(values))
        labels.append(row[label])
    return texts, labels


def _classes(labels: list, path: Path) -> list:
    """The values that occur, in order."""
    classes = sorted(set(labels), key=None if all(isinstance(label, int) for label in labels) else str)
    if len(classes) < 2:
        raise LayerCollapseError(f"label: expected at least two classes in {path}, got {_shown(classes)}")
    return classes


def _shown(names: Sequence[Any], most: int = 12) -> str:
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
