"""The commands and the Python of docs/start.md run, in order, in one folder."""

import re
import shlex

import pytest

import pages
from checkout import ROOT


@pytest.mark.long
def test_the_page_runs(tmp_path):
    text = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    run, *looks = re.findall(r"^    layercollapse (.*)$", text, re.MULTILINE)
    (block,) = pages.blocks("start.md")
    command(run, tmp_path)
    pages.run(block, tmp_path)
    assert len(looks) == 2
    for look in looks:
        command(look, tmp_path)
    assert (tmp_path / "runs" / "first" / "report.html").is_file()


def command(arguments, folder):
    pages.python(["-m", "layercollapse", *shlex.split(arguments)], cwd=folder)
