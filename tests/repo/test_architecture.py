"""The architecture page says which files are long, and why."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_long_files_have_a_reason():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `([\w/]+\.py)` \|", page[page.index("## Files above 300 lines") :], re.MULTILINE))
    package = ROOT / "layercollapse"
    files = {str(path.relative_to(package)): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    assert named == {name for name, text in files.items() if text.count("\n") > 300}


def test_the_page_names_every_package():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    folders = [path.parent for path in (ROOT / "layercollapse").glob("*/__init__.py")]
    folders += [path.parent for path in (ROOT / "layercollapse/compiler").glob("*/__init__.py")]
    assert [folder.name for folder in folders if not re.search(rf"\b{folder.name}\b", page)] == []


def test_metadata_of_nodes_has_typed_keys():
    package = ROOT / "layercollapse"
    paths = {str(path.relative_to(package)): path for path in package.rglob("*.py")}
    # What reads data and builds networks sees no node; a file of CIFAR-10 is called .meta.
    files = {name: path.read_text(encoding="utf-8") for name, path in paths.items() if not name.startswith("zoo/")}
    assert {name for name, text in files.items() if re.search(r"\.meta(\[|\.|\b[^\w. ]| =| in)", text)} == {
        "graph/meta.py"
    }
