"""The drawings of an inspected network, read from their text."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
import torch
from torch import Tensor, nn

import layercollapse as lc
from layercollapse.report.diagram import GUTTER, LEFT, WIDTH

pytestmark = pytest.mark.usefixtures("seeded")


class Net(nn.Module):
    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(1, 4, 3), nn.ReLU()
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2 * blocks))
        self.named = nn.ModuleDict({'a <"b"> `c`': nn.ReLU()})

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        layers = list(self.blocks)
        for one, two in zip(layers[::2], layers[1::2], strict=True):
            x = self.relu(x + two(self.relu(one(x))))
        return next(iter(self.named.values()))(x)


@pytest.fixture(scope="module")
def seen() -> lc.Inspection:
    return lc.inspect(Net(), torch.randn(2, 1, 8, 8))


def svg(seen: lc.Inspection) -> ET.Element:
    return ET.fromstring(seen.to_svg().replace(' xmlns="http://www.w3.org/2000/svg"', ""))


def test_a_row_for_each_box_with_all_that_is_known(seen: lc.Inspection) -> None:
    rows = [group for group in svg(seen).iter("g") if group.get("class") == "row"]
    titles = [group.find("title").text for group in rows]
    assert len(rows) == len(seen.boxes)
    assert titles[1].startswith("stem: 3x3, 1 → 4; ")
    relu = titles[[box.name for box in seen.boxes].index("relu#2")]
    assert relu.splitlines()[0] == "relu#2: relu"
    assert "no single layer is exact at the border" in relu
    saved = seen.share(seen.sites[1].saving.constant)
    assert f"saves 0.0 % as the identity, {saved} as a constant" in relu
    assert rows[4].find("text").text == saved


def test_regions_and_strokes(seen: lc.Inspection) -> None:
    root = svg(seen)
    shades = [rect for rect in root.iter("rect") if rect.get("class") == "region"]
    assert len(shades) == len(seen.regions) == 5
    strokes = [line for line in root.iter("line") if line.get("class") == "barrier"]
    assert len(strokes) == sum(bool(site.saving.barriers) for site in seen.sites)


@pytest.mark.parametrize("blocks", [1, 3])
def test_everything_is_inside(blocks: int) -> None:
    root = svg(lc.inspect(Net(blocks), torch.randn(2, 1, 8, 8)))
    *_, width, height = map(float, root.get("viewBox").split())
    assert width == WIDTH
    for rect in root.iter("rect"):
        assert 0 <= float(rect.get("x")) <= float(rect.get("x")) + float(rect.get("width")) <= width
        assert 0 <= float(rect.get("y")) <= float(rect.get("y")) + float(rect.get("height")) <= height
    for path in root.iter("path"):
        xs = [float(x) for x in re.findall(r"[MHQ]\s*(-?[\d.]+)", path.get("d"))]
        assert 0 <= min(xs) <= max(xs) <= LEFT + 7
        assert min(xs) < GUTTER


def test_mermaid(seen: lc.Inspection) -> None:
    lines = [line.strip() for line in seen.to_mermaid().splitlines()]
    assert lines[0] == "flowchart TD"
    nodes = {line[: re.match(r"b\d+", line).end()] for line in lines if re.match(r"b\d+[\[({]", line)}
    assert nodes == {f"b{place}" for place in range(len(seen.boxes))}
    edges = {line for line in lines if "-->" in line}
    assert edges == {f"b{read} --> b{place}" for place, box in enumerate(seen.boxes) for read in box.reads}
    assert sum(line.startswith("subgraph") for line in lines) == 5 == lines.count("end")
    assert any(re.fullmatch(r'b3 -\. "no single layer is exact at the border.*" \.- b5', line) for line in lines)
    quoted = re.findall(r'"([^"]*)"', "\n".join(line for line in lines if not line.startswith("%%")))
    assert any("a #lt;#quot;b#quot;#gt; #96;c#96;" in text for text in quoted)
    assert not any(letter in text.replace("<br/>", "") for text in quoted for letter in '<>"`')
