"""The commands and the Python of docs/start.md run, in order, in one folder."""

import os
import re
import shlex
import subprocess
import sys

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
    done = subprocess.run(
        [sys.executable, "-m", "layercollapse", *shlex.split(arguments)],
        check=False,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
