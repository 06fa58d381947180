"""An inspected network as a picture from top to bottom, and as a Mermaid flowchart."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from layercollapse.compiler.analysis.chart import Box
from layercollapse.report.drawing import STYLE, bend

if TYPE_CHECKING:
    from layercollapse.report.inspection import InspectedSite, Inspection

# In units of the picture, which is as wide as a telephone, and is shown twice as large at most.
WIDTH, ROW, TOP, LARGEST = 420, 31, 82, 840
GUTTER, LANES = 38, 4  # for what reads over other rows
LEFT, BAR = 46, 72  # where boxes begin, and how wide the largest is
TEXT = LEFT + BAR + 8
NAME, ABOUT, HEAD = 33, 50, 64  # characters that fit
KEY = "blue: work; orange: most saved without this rectifier; stroke: layers would stay two"
PLACES = f"""
svg {{ width: 100%; max-width: {LARGEST}px; height: auto; }}
text {{ font: 12px system-ui, "DejaVu Sans", sans-serif; fill: var(--ink); }}
.head {{ font-size: 11px; }}
.soft {{ font-size: 9.5px; fill: var(--soft); }}
.line {{ fill: none; stroke: var(--soft); stroke-width: 1; }}
.region {{ fill: var(--faint); opacity: .5; }}
.layer {{ fill: var(--accent); }}
.bend {{ fill: none; stroke: var(--second); stroke-width: 2; stroke-linejoin: round; }}
.saved {{ fill: var(--second); }}
.barrier {{ stroke: var(--ink); stroke-width: 2; }}
.join {{ fill: var(--faint); stroke: var(--soft); }}
"""


def svg(seen: Inspection) -> str:
    """A row for each layer, rectifier, sum and other operation; shaded are the linear regions.

    A bar is as long as the square root of a layer's work; the percentage beside a rectifier is the most that is saved
    without it alone; a stroke beside it, that layers would stay two. Titles (shown by browsers where the mouse is) have
    the rest.
    """
    boxes, sites = seen.boxes, {site.name: site for site in seen.sites}
    root = ET.Element("svg", xmlns="http://www.w3.org/2000/svg", role="img")
    root.set("viewBox", f"0 0 {WIDTH} {TOP + ROW * len(boxes) + 8}")
    ET.SubElement(root, "title").text = "The network's rectifiers, and the linear regions between them"
    ET.SubElement(root, "style").text = STYLE + PLACES
    head = [(line, "head") for text in seen.headline() for line in textwrap.wrap(text, HEAD)]
    for at, (line, kind) in enumerate([*head, (KEY, "soft")]):
        ET.SubElement(root, "text", {"class": kind}, x="4", y=f"{13 + 13 * at}").text = line
    _shade(root, boxes)
    _connect(root, boxes)
    most = max((box.macs for box in boxes), default=1) or 1
    for place, box in enumerate(boxes):
        group = ET.SubElement(root, "g", {"class": "row"})
        middle = _middle(place)
        if box.kind == "layer":
            width = f"{4 + (BAR - 4) * math.sqrt(box.macs / most):.1f}"
            bar = {"class": "layer", "rx": "1.5"}
            ET.SubElement(group, "rect", bar, x=f"{LEFT}", y=f"{middle - 6}", width=width, height="12")
            _say(group, middle, box.name, f"{box.what}; {seen.share(box.macs)} of the work")
        elif box.kind == "rectifier":
            _rectifier(group, middle, box, sites.get(box.name), seen)
        else:
            ET.SubElement(group, "circle", {"class": "join"}, cx=f"{LEFT + 7}", cy=f"{middle}", r="4")
            _say(group, middle, box.name, "" if box.kind == "join" else box.kind)
    return ET.tostring(root, encoding="unicode")


def _middle(place: int) -> float:
    return TOP + ROW * (place + 0.5)


def _say(group: ET.Element, middle: float, name: str, about: str, title: str = "") -> None:
    """A name and what it is, cut to fit; the title has all of both."""
    ET.SubElement(group, "title").text = title or f"{name}: {about}".rstrip(": ")
    ET.SubElement(group, "text", x=f"{TEXT}", y=f"{middle - 1 if about else middle + 4}").text = tail(name, NAME)
    if about:
        ET.SubElement(group, "text", {"class": "soft"}, x=f"{TEXT}", y=f"{middle + 10}").text = _start(about, ABOUT)


def _rectifier(group: ET.Element, middle: float, box: Box, site: InspectedSite | None, seen: Inspection) -> None:
    """A bent line, what the network saves without it, and why layers would stay."""
    shape = bend(LEFT + 2, middle + 4, 11)
    shape.set("class", "bend")
    group.append(shape)
    saving = None if site is None else site.saving
    reasons = [] if saving is None else [f"{' → '.join(one.layers)}: {one.reason}" for one in saving.barriers]
    reasons += [] if site is None else site.notes
    lines = [f"{box.name}: {box.what}"]
    about = box.what
    if saving is not None:
        identity, constant = seen.share(saving.identity), seen.share(saving.constant)
        lines.append(
            f"saves {identity} as the identity, {constant} as a constant, "
            f"{seen.share(saving.together)} with all before it"
        )
        if saving.most:
            most = max(one.saving.most for one in seen.sites if one.saving is not None)
            wide = f"{max(1, (BAR - 16) * saving.most / most):.1f}"
            bar = {"class": "saved"}
            ET.SubElement(group, "rect", bar, x=f"{LEFT + 16}", y=f"{middle - 2}", width=wide, height="5")
        percent = {"text-anchor": "end"}
        ET.SubElement(group, "text", percent, x=f"{WIDTH - 6}", y=f"{middle - 1}").text = seen.share(saving.most)
    if saving is not None and saving.barriers:
        ends = {"x1": f"{LEFT - 4}", "x2": f"{LEFT + 11}"}
        ET.SubElement(group, "line", {"class": "barrier"}, **ends, y1=f"{middle + 9}", y2=f"{middle + 9}")
        about += f"; {saving.barriers[0].reason}"
    elif site is not None and site.notes:
        about += f"; {site.notes[0]}"
    _say(group, middle, box.name, about, "\n".join([*lines, *reasons]))


def _shade(root: ET.Element, boxes: Sequence[Box]) -> None:
    """Behind the rows of a region; one that goes on after other rows has several such."""
    start = 0
    for place, box in enumerate(boxes):
        after = boxes[place + 1].region if place + 1 < len(boxes) else None
        if box.region is None or after == box.region:
            start = start if after == box.region and box.region is not None else place + 1
            continue
        size = {"width": f"{WIDTH - GUTTER - 4}", "height": f"{ROW * (place + 1 - start) - 3}"}
        top = TOP + ROW * start + 1.5
        ET.SubElement(root, "rect", {"class": "region", "rx": "4", **size}, x=f"{GUTTER}", y=f"{top}")
        number = {"class": "soft", "text-anchor": "end"}
        ET.SubElement(root, "text", number, x=f"{WIDTH - 8}", y=f"{top + 12}").text = f"region {box.region}"
        start = place + 1


def _connect(root: ET.Element, boxes: Sequence[Box]) -> None:
    """A line to the next row; for what is read from further up, one through the gutter."""
    ends = [-1] * LANES  # the row in which the last line of a lane ends
    x = LEFT + 7
    far = sorted((read, place) for place, box in enumerate(boxes) for read in box.reads if read != place - 1)
    for place, box in enumerate(boxes):
        if place - 1 in box.reads:
            y = {"y1": f"{_middle(place - 1)}", "y2": f"{_middle(place)}"}
            ET.SubElement(root, "line", {"class": "line", **y}, x1=f"{x}", x2=f"{x}")
    for read, place in far:
        lane = next((lane for lane, end in enumerate(ends) if end <= read), LANES - 1)
        ends[lane] = max(ends[lane], place)
        side = GUTTER - 8 - 8 * lane
        path = f"M{x} {_middle(read)} H{side + 6} Q{side} {_middle(read)} {side} {_middle(read) + 6} "
        path += f"V{_middle(place) - 6} Q{side} {_middle(place)} {side + 6} {_middle(place)} H{x}"
        ET.SubElement(root, "path", {"class": "line"}, d=path)


def tail(text: str, most: int) -> str:
    """A text of so many characters at most: its end, which tells names of modules apart."""
    return text if len(text) <= most else f"…{text[1 - most :]}"


def _start(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def mermaid(seen: Inspection) -> str:
    """Regions are boxes around layers, rectifiers say what is saved without them, dotted lines what stays two."""
    boxes, sites, regions = seen.boxes, {site.name: site for site in seen.sites}, seen.regions
    lines = ["flowchart TD", *(f"  %% {line}" for line in seen.headline())]
    inside: dict[int | None, list[str]] = {}
    for place, box in enumerate(boxes):
        inside.setdefault(box.region, []).append(f"b{place}{_shape(box, sites.get(box.name), seen)}")
    for number, members in inside.items():
        if number is None:
            lines += [f"  {member}" for member in members]
            continue
        share = seen.share(regions[number].macs)
        head = f'  subgraph r{number} ["region {number}: {share} of the work"]'
        lines += [head, *(f"    {member}" for member in members), "  end"]
    lines += [f"  b{read} --> b{place}" for place, box in enumerate(boxes) for read in box.reads]
    layers = {box.name: f"b{place}" for place, box in enumerate(boxes) if box.kind == "layer"}
    for site in seen.sites:
        for one in () if site.saving is None else site.saving.barriers:
            first, second = layers.get(one.layers[0]), layers.get(one.layers[-1])
            if first and second:
                why = _escaped(re.split(r"[;(]", one.reason)[0].strip())
                lines.append(f'  {first} -. "{why}" .- {second}')
    kinds = {kind: [f"b{place}" for place, box in enumerate(boxes) if box.kind == kind] for kind in _COLOURS}
    for kind, places in kinds.items():
        lines += [f"  classDef {kind} {_COLOURS[kind]}", f"  class {','.join(places)} {kind}"] if places else []
    return "\n".join(lines) + "\n"


_COLOURS = {"layer": "fill:#0b63ce,stroke:#0b63ce,color:#fff", "rectifier": "fill:#fff,stroke:#b45309,color:#1c2024"}


def _shape(box: Box, site: InspectedSite | None, seen: Inspection) -> str:
    """A node's brackets with its label."""
    name = _escaped(box.name)
    if box.kind == "layer":
        return f'["{name}<br/>{_escaped(box.what)}"]'
    if box.kind == "rectifier":
        saving = None if site is None else site.saving
        most = "" if saving is None else f"<br/>{seen.share(saving.most)} saved at most"
        return f'{{{{"{name}<br/>{_escaped(box.what)}{most}"}}}}'
    return f'(("{name}"))' if box.kind == "join" else f'(["{name}"])'


def _escaped(text: str) -> str:
    """Text for a label: Mermaid reads entities after a number sign."""
    named = {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "`": "#96;"}
    return "".join(named.get(letter, letter) for letter in text)
