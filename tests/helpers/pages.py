"""The Python blocks of the documentation's pages, and how they are run: each by itself, in a process and a folder."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from checkout import ROOT


class Block(NamedTuple):
    """A block of a page: its heading, what the line of its fence says (needs=MODULE,..., ranks=2), and its code."""

    title: str
    options: dict[str, str]
    code: str


def blocks(page: str) -> list[Block]:
    """The Python blocks of docs/PAGE below a heading of the second level."""
    found = []
    for section in re.split(r"^## ", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        for words, code in re.findall(r"^```python(.*)\n((?:.*\n)*?)```$", section, re.MULTILINE):
            options = dict(word.split("=") for word in words.split())
            found.append(Block(section.partition("\n")[0], options, code))
    return found


def run(block: Block, folder: Path) -> None:
    """Run a block in this folder; skip it where a module that it needs is not installed."""
    for need in filter(None, block.options.get("needs", "").split(",")):
        if importlib.util.find_spec(need) is None:
            pytest.skip(f"needs {need}")
    script = folder / "block.py"
    script.write_text(block.code, encoding="utf-8")
    ranks = block.options.get("ranks")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks] if ranks else []
    python([*launcher, str(script)], cwd=folder)


def python(arguments: list[str], **options: Any) -> None:
    """Run Python with one thread, to an end without an error.

    Args:
        arguments: what follows `python`.
        options: of `subprocess.run`, such as ``cwd`` and ``input``.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        **{"timeout": 300, **options},
    )
    assert done.returncode == 0, done.stderr
