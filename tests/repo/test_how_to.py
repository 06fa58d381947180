"""Every block of docs/how-to.md runs, and every section has one."""

import pytest

import pages
from checkout import ROOT

BLOCKS = pages.blocks("how-to.md")


@pytest.mark.long
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.title)
def test_block_runs(block, tmp_path):
    pages.run(block, tmp_path)


def test_every_section_has_a_block():
    text = (ROOT / "docs" / "how-to.md").read_text(encoding="utf-8")
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert [block.title for block in BLOCKS] == titles
    assert len(titles) == 12
