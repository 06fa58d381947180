"""The examples run as they are, and the README shows what runs."""

import os
import re
import subprocess
import sys

import pytest

from checkout import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.long
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example, tmp_path):
    if "transformers" in example.read_text(encoding="utf-8"):
        pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
    done = subprocess.run(
        [sys.executable, example],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "collapsed" in done.stdout
    if example.stem == "ten_lines":
        assert (tmp_path / "runs" / "run" / "report.html").is_file()


def test_readme_shows_the_example():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert (ROOT / "examples" / "ten_lines.py").read_text(encoding="utf-8") in blocks


def test_readme_names_commands_that_exist():
    from layercollapse.cli.commands import layercollapse

    named = set(re.findall(r"`layercollapse (\w+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert named == set(layercollapse.commands)


def test_readme_maps_every_module():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    mapped = set(re.findall(r"\w+", readme[readme.index("## Map") :]))
    package = ROOT / "layercollapse"
    modules = {path.stem for path in package.glob("*.py") if not path.stem.startswith("_")}
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    assert (modules | folders) - mapped == set()
