"""Every block of docs/integrations.md runs, where what it needs is installed."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from checkout import ROOT

TEXT = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"## ([^\n]+)\n(?:(?!\n## ).)*?```python(?: needs=([\w,]+))?\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.long
@pytest.mark.parametrize(("title", "needs", "code"), BLOCKS, ids=[title for title, _, _ in BLOCKS])
def test_block_runs(title, needs, code, tmp_path):
    for need in filter(None, needs.split(",")):
        if importlib.util.find_spec(need) is None:
            pytest.skip(f"needs {need}")
    done = subprocess.run(
        [sys.executable, "-"],
        check=False,
        input=code,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_every_block_and_every_module_is_there():
    assert len(BLOCKS) == TEXT.count("```python")
    named = set(re.findall(r"layercollapse\.integrations(?:\.| import )(\w+)", TEXT))
    modules = {path.stem for path in (ROOT / "layercollapse" / "integrations").glob("*.py")}
    assert named == modules - {"__init__", "schedule"}
