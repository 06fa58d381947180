"""What docs/ops.md shows is so: its Python runs, in order, and its C++ is that of the example."""

import importlib.util
import re

import pytest

import pages
from checkout import ROOT
from layercollapse import ops

TEXT = (ROOT / "docs" / "ops.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python(?: needs=(\w+))?\n(.*?)```", TEXT, re.DOTALL)


def run(blocks):
    pages.python(["-"], input="\n".join(blocks), timeout=120)


@pytest.mark.skipif(not ops.backends()["cpu"].available, reason="the C++ part is not built")
def test_python_of_the_page_runs_in_order():
    assert len(BLOCKS) >= 8
    run([code for need, code in BLOCKS if not need])


@pytest.mark.parametrize("need", sorted({need for need, _ in BLOCKS if need}))
def test_other_arrays(need):
    if importlib.util.find_spec(need) is None:
        pytest.skip(f"needs {need}")
    run(["import torch\nfrom layercollapse import ops", *(code for other, code in BLOCKS if other == need)])


def test_the_c_of_the_page_is_the_example():
    (block,) = re.findall(r"```cpp\n(.*?)```", TEXT, re.DOTALL)
    example = (ROOT / "examples" / "cpp" / "prune.cpp").read_text(encoding="utf-8")
    assert "".join(f"  {line}\n" for line in block.splitlines()) in example


def test_the_page_names_every_op():
    table = TEXT[: TEXT.index("## What holds for all")]
    others = {
        "BackendStatus",
        "SignPatterns",
        "TOPK_BINS",
        "TOPK_COUNTS",
        "TOPK_END",
        "TOPK_END64",
        "TopkRange",
        "backends",
        "last_backend",
        "use_backend",
    }
    assert {name for name in ops.__all__ if f"`{name}(" not in table} == others
