"""What is packaged and published agrees with itself; `.ci/run` builds it and runs it."""

import re
import shutil
import subprocess
import sys
import tarfile

import yaml

from checkout import ROOT
from layercollapse import __version__

PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_both_packages_are_typed():
    data = PYPROJECT[PYPROJECT.index("[tool.setuptools.package-data]") :].partition("\n\n")[0]
    assert {line.partition(" =")[0] for line in data.splitlines() if '"py.typed"' in line} == {
        "layercollapse",
        "layercollapse_core",
    }
    assert (ROOT / "layercollapse" / "py.typed").is_file()
    assert (ROOT / "csrc" / "python" / "py.typed").is_file()


def test_citation_has_what_its_format_asks_for_and_the_paper_and_no_second_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert "version" not in citation
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (paper,) = citation["references"]
    assert f"[{paper['title']}]({paper['url']})" in readme
    assert citation["license"] == re.search(r'^license = "(.*)"', PYPROJECT, re.MULTILINE)[1]


def test_the_workflow_does_what_ci_run_does():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["run"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    oldest = re.search(r'^requires-python = ">=(.*)"', PYPROJECT, re.MULTILINE)[1]
    assert oldest in job["strategy"]["matrix"]["python"]


def test_the_sdist_holds_all_that_is_compiled(tmp_path):
    names = ("layercollapse", "csrc", "kernels", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
    for name in (*names, "CHANGELOG.md", "CITATION.cff"):
        path = ROOT / name
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(path, tmp_path / name, ignore=skipped) if path.is_dir() else shutil.copy(path, tmp_path)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist"], check=False, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    top = f"layercollapse-{__version__}"
    with tarfile.open(tmp_path / "dist" / f"{top}.tar.gz") as sdist:
        inside = {name.removeprefix(f"{top}/") for name in sdist.getnames()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.*") if path.is_file()}
    sources = {name for name in sources if "__pycache__" not in name and not name.endswith(".so")}
    assert sources <= inside
    assert {"csrc/cuda/masked_topk.cu", "layercollapse/py.typed", "CITATION.cff"} <= inside
    assert not any(name.endswith(".so") for name in inside)
