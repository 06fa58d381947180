import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from layercollapse.report import render as report
from layercollapse.report.record import Pieces, Record
from records import make_record

TIMED = ("Every region as it is fastest.", "a, b", "layers kept in sequence 0.250 ms; every pass applied 0.500 ms")


class Page(HTMLParser):
    """Text, tags that are open, and everything that a browser would fetch."""

    VOID = ("meta", "br", "img", "link", "input", "hr")

    def __init__(self, html):
        super().__init__()
        self.text, self.open, self.fetched = "", [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value[0] != "#"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_rows_by_hand():
    rows = {row.label: (row.before, row.after, row.change) for row in report.rows(make_record())}
    assert rows == {
        "top-1 on the test split": ("97.25 %", "97.75 %", "+0.50 points"),
        "rectifier sites": ("3", "1", "2 collapsed"),
        "depth (layers with weights)": ("18", "14", "-4"),
        "parameters": ("701,178", "350,589", "2.00x smaller"),
        "MACs per sample": ("13,000,000", "13,000,000", "the same"),
        "file": ("2.70 MiB", "1.35 MiB", "2.00x smaller"),
        "latency, batch 1 (median)": ("2.00 ms", "1.00 ms", "2.00x faster"),
        "latency, batch 64 (median)": ("20.00 ms", "25.00 ms", "1.25x slower"),
    }


def test_table_shows_every_row():
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.table(make_record()))
    shown = console.export_text()
    for row in report.rows(make_record()):
        assert re.search(rf"{re.escape(row.label)}\W+{re.escape(row.before)}.*{re.escape(row.change)}", shown)


@pytest.mark.parametrize(("steps", "finished"), [(3, True), (1, True), (11, True), (2, False), (0, False)])
def test_page_is_whole_and_standalone(tmp_path, steps, finished):
    record = make_record(steps, finished)
    if not steps:
        record.chosen, record.sites = None, []
    page = Page(report.write_html(record, tmp_path).read_text())
    assert page.open == []
    assert page.fetched == []
    assert ("Before and after" in page.text) == finished
    assert ("Sign entropy per site" in page.text) == (steps > 0)
    for text in (
        ("97.75 %", "2.00x smaller", "359 of 360", "<mixed> & so on", *TIMED) if finished else ("No result yet",)
    ):
        assert text in page.text


def test_the_page_says_whether_the_regions_are_written_as_they_are_fastest():
    record = make_record()
    assert "written otherwise" not in report.html(record)
    record.form = "every pass applied"
    assert "written otherwise" in report.html(record)
    record.regions[0].variant = "every pass applied"
    assert "written otherwise" not in report.html(record)


def test_heat_map_has_a_cell_per_site_and_step():
    html = report.html(make_record())
    cells = re.findall(r'<td title="(.*?), step (\d): .*?>([\w.]+)</td>', html)
    assert [cell for cell in cells if cell[0] == "layer1.0.relu"] == [
        ("layer1.0.relu", "0", "0.625"),
        ("layer1.0.relu", "1", "0.500"),
        ("layer1.0.relu", "2", "linear"),
    ]
    assert len(cells) == 9


def test_patterns_have_a_table_where_they_were_counted(tmp_path):
    record = make_record(steps=2)
    assert "Sign patterns" not in report.html(record)
    record.steps[1].patterns = [Pieces(1, 0.0, True), Pieces(12_345, 11.5, True), Pieces(98_765, 15.25, False)]
    record.save(tmp_path)
    assert Record.load(tmp_path) == record
    page = report.html(record)
    for text in ("Sign patterns per site", ">1<br>", ">12,345<br>", "11.50 bits", ">~98,765<br>"):
        assert text in page


def test_the_page_draws_the_network_and_its_neurons(tmp_path):
    text = report.html(make_record())
    assert "before: 2 layers, 1 rectifier, 800 multiply-accumulates a sample" in text
    assert "<title>2 of 8 neurons at 0 bits; then by tenths: 6, 0, 0, 0, 0, 0, 0, 0, 0, 0</title>" in text
    assert text.count('class="bars"') == 2 * 3
    report.write_html(make_record(), tmp_path)
    assert (tmp_path / "network.svg").read_text().startswith("<svg")
    bare = make_record()
    bare.parts_after = []
    for step in bare.steps:
        step.histograms = []
    assert "layer by layer" not in report.html(bare)
    report.write_html(bare, tmp_path)
    assert not (tmp_path / "network.svg").exists()
    assert "by entropy" not in report.html(bare)


def test_interruption_is_said():
    record = make_record(2, finished=False)
    record.interrupted = True
    assert "interrupted" in report.html(record)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["relu", "layer1.0.relu"], ["relu", "layer1.0.relu"]),
        (
            ["model.encoder.layer.0.intermediate.activation", "model.encoder.layer.1.intermediate.activation"],
            ["…0…", "…1…"],
        ),
        (["a" * 40 + ".x", "a" * 40 + ".y"], ["…x", "…y"]),
        (["only." + "a" * 40], ["only." + "a" * 40]),
        (["a" * 40, "b"], ["a" * 40, "b"]),
    ],
)
def test_short_names(names, expected):
    assert report.short_names(names) == expected
