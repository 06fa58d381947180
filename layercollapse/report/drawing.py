"""A network before and after, as a drawing of its layers: an `<svg>` element for the report, or a file of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree as ET

from layercollapse.compiler.analysis.outline import Part
from layercollapse.report.record import Record, Verdict

WIDTH, BAND, TALLEST = 960, 118, 72  # in units of the picture
LAYER, RECTIFIER, GAP, WIDEST = 2.2, 1.0, 0.45, 11.0  # widths in units that are WIDEST at most

# A file of its own has no page to take its colours from.
STYLE = """
svg { --ink: #1c2024; --soft: #60656c; --faint: #dddfe2; --accent: #0b63ce; --second: #b45309; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e8eaed; --soft: #9aa1a9; --faint: #343a41; --accent: #6cb0ff; --second: #f0a050; }
}
"""
PLACES = """
.net text { font: 13px system-ui, "DejaVu Sans", sans-serif; fill: var(--ink); }
.net .line { stroke: var(--soft); stroke-width: 1; }
.net .layer { fill: var(--accent); }
.net .layer.gone { fill: var(--faint); stroke: var(--soft); stroke-width: .75; stroke-dasharray: 2 2; }
.net .bend { fill: none; stroke: var(--second); stroke-width: 2; stroke-linejoin: round; }
.net .bend.gone { stroke: var(--faint); }
"""


def networks(record: Record, own: bool = False) -> str:
    """Both networks of a finished run in one drawing: a box a layer, as high as the square root of its work, and a bent
    line a rectifier; those that are gone are faint. Titles (shown by browsers where the mouse is) say what and why.

    Args:
        record: of a run with `parts_before`.
        own: whether it is a file of its own, with colours for light and dark pages; otherwise the page has them, as
            the variables `--ink`, `--soft`, `--faint`, `--accent`, `--second`.
    """
    bands = [("before", record.parts_before), ("after", record.parts_after)]
    root = ET.Element("svg", viewBox=f"0 0 {WIDTH} {2 * BAND}", role="img")
    root.set("class", "net")
    if own:
        root.set("xmlns", "http://www.w3.org/2000/svg")
    ET.SubElement(root, "title").text = "The network before and after"
    ET.SubElement(root, "style").text = (STYLE if own else "") + PLACES
    unit = min(WIDEST, WIDTH / max(1.0, *(sum(map(_width, parts)) for _, parts in bands)))
    most = max((part.macs for _, parts in bands for part in parts), default=1) or 1
    left = {(part.name, part.rectifier) for part in record.parts_after}
    reasons = {verdict.name: verdict for verdict in record.verdicts}
    for row, (label, parts) in enumerate(bands):
        base = row * BAND + BAND - 6 - TALLEST / 2
        ET.SubElement(root, "text", x="0", y=f"{row * BAND + 18}").text = f"{label}: {count(parts)}"
        end = f"{unit * sum(map(_width, parts)):.1f}"
        ET.SubElement(root, "line", x1="0", x2=end, y1=f"{base}", y2=f"{base}").set("class", "line")
        x = 0.0
        for part in parts:
            group = ET.SubElement(root, "g")
            gone = row == 0 and (part.name, part.rectifier) not in left
            ET.SubElement(group, "title").text = _title(part, gone, reasons)
            high = TALLEST * math.sqrt(part.macs / most)
            shape = bend(x, base, unit) if part.rectifier else _box(x, base, unit, max(4.0, high))
            shape.set("class", f"{'bend' if part.rectifier else 'layer'}{' gone' * gone}")
            group.append(shape)
            x += unit * _width(part)
    return ET.tostring(root, encoding="unicode")


def count(parts: Sequence[Part]) -> str:
    """How many layers and rectifiers there are, and their work, in words."""
    layers = sum(not part.rectifier for part in parts)
    rectifiers = len(parts) - layers
    names = (f"{layers} layer{'s' * (layers != 1)}", f"{rectifiers} rectifier{'s' * (rectifiers != 1)}")
    work = sum(part.macs for part in parts)
    return f"{names[0]}, {names[1]}, {work:,} multiply-accumulates a sample"


def _width(part: Part) -> float:
    return (RECTIFIER if part.rectifier else LAYER) + GAP


def _box(x: float, middle: float, unit: float, high: float) -> ET.Element:
    """A layer, its left edge at x."""
    y, wide = f"{middle - high / 2:.1f}", f"{LAYER * unit:.1f}"
    return ET.Element("rect", x=f"{x:.1f}", y=y, width=wide, height=f"{high:.1f}", rx="1.5")


def bend(x: float, middle: float, unit: float) -> ET.Element:
    """A rectifier, its left end at x: flat, then up."""
    wide = RECTIFIER * unit
    points = ((x, middle), (x + wide / 2, middle), (x + wide, middle - max(4.0, wide)))
    return ET.Element("polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in points))


def _title(part: Part, gone: bool, reasons: Mapping[str, Verdict]) -> str:
    """What a part is and what became of it."""
    if not part.rectifier:
        fate = "; gone: its neighbours do its work, or nothing reads it" if gone else ""
        return f"{part.name}: {part.what}; {part.weights:,} weights, {part.macs:,} multiply-accumulates{fate}"
    verdict = reasons.get(part.name)
    if verdict is None:
        return f"{part.name}: {part.what}"
    why = ": ".join(filter(None, (verdict.guarantee, verdict.reason)))
    return f"{part.name}: {part.what}; {verdict.status}, {why}"
