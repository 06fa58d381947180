"""Every block of docs/integrations.md runs, where what it needs is installed."""

import re

import pytest

import pages
from checkout import ROOT

BLOCKS = pages.blocks("integrations.md")


@pytest.mark.long
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.title)
def test_block_runs(block, tmp_path):
    pages.run(block, tmp_path)


def test_every_block_and_every_module_is_there():
    text = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
    assert len(BLOCKS) == text.count("```python")
    named = set(re.findall(r"layercollapse\.integrations(?:\.| import )(\w+)", text))
    modules = {path.stem for path in (ROOT / "layercollapse" / "integrations").glob("*.py")}
    assert named == modules - {"__init__", "schedule"}
