"""What the drawing of a network shows, read from its SVG."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from layercollapse.compiler.analysis.outline import Part
from layercollapse.report.drawing import WIDTH, count, networks
from records import make_record

BEFORE = [Part("a", "3x3, 1 → 4", 36, 3600), Part("a.relu", "relu"), Part("b", "4 → 4", 16, 900), Part("b", "relu")]


def drawn(own: bool = False, before=BEFORE, after=(BEFORE[0], BEFORE[2])) -> ET.Element:
    record = make_record()
    record.parts_before, record.parts_after = list(before), list(after)
    record.verdicts[0].name, record.verdicts[0].reason = "a.relu", "<all on>"
    text = networks(record, own)
    assert ("prefers-color-scheme" in text) == own
    return ET.fromstring(text.replace(' xmlns="http://www.w3.org/2000/svg"', ""))


def shapes(svg: ET.Element) -> list[tuple[str, str]]:
    return [(group[1].get("class"), group[0].text) for group in svg.iter("g")]


def test_what_is_gone_is_faint_and_says_why() -> None:
    classes, titles = zip(*shapes(drawn()), strict=True)
    # The rectifier "b" is gone; the layer of that name is not.
    assert classes == ("layer", "bend gone", "layer", "bend gone", "layer", "layer")
    assert titles[0] == "a: 3x3, 1 → 4; 36 weights, 3,600 multiply-accumulates"
    assert titles[1].startswith("a.relu: relu; collapsed, ")
    assert "<all on>" in titles[1]
    assert titles[3] == "b: relu"


def test_a_layer_that_is_gone_says_so() -> None:
    titles = [title for _, title in shapes(drawn(after=BEFORE[:2]))]
    assert titles[2].endswith("; gone: its neighbours do its work, or nothing reads it")
    assert "gone" not in titles[0]


def test_heights_go_with_the_square_root_of_the_work() -> None:
    first, second, *_ = (float(box.get("height")) for box in drawn().iter("rect"))
    assert first == pytest.approx(2 * second, abs=0.1)


@pytest.mark.parametrize("parts", [[], BEFORE, 100 * BEFORE])
def test_everything_is_inside_the_picture(parts: list[Part]) -> None:
    svg = drawn(before=parts, after=parts[:1], own=True)
    for box in svg.iter("rect"):
        assert 0 <= float(box.get("x")) <= float(box.get("x")) + float(box.get("width")) <= WIDTH
        assert 0 <= float(box.get("y")) <= float(box.get("y")) + float(box.get("height")) <= 236
    assert sum(1 for _ in svg.iter("g")) == len(parts) + min(1, len(parts))


def test_the_counts_in_words() -> None:
    assert count(BEFORE) == "2 layers, 2 rectifiers, 4,500 multiply-accumulates a sample"
    assert count(BEFORE[:2]) == "1 layer, 1 rectifier, 3,600 multiply-accumulates a sample"
