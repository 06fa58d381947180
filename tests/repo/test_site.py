"""What docs/site_pages.py makes of the code and of the links; make docs builds the whole site and is strict."""

import importlib.util
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from checkout import ROOT
from layercollapse.cli.commands import layercollapse
from layercollapse.cli.recipe import Recipe

pytest.importorskip("mkdocs")


@pytest.fixture(scope="module")
def site_pages():
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs" / "site_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_command_line_has_every_option_of_every_command(site_pages):
    sections = dict(re.findall(r"^## layercollapse (\w+)\n(.*?)(?=^## |\Z)", site_pages.command_line(), re.M | re.S))
    assert set(sections) == set(layercollapse.commands)
    for name, command in layercollapse.commands.items():
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
        assert [option for option in options if option not in sections[name]] == []


def test_recipe_has_a_row_of_three_cells_for_every_key(site_pages):
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in site_pages.recipe().splitlines() if line.startswith("| `")]
    assert {row[0].strip(" `") for row in rows} == set(Recipe.model_fields)
    assert {len(row) for row in rows} == {3}


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        ("index.md", "[a](docs/data.md) [b](docs/results/)", "[a](data.md) [b](results/README.md)"),
        ("index.md", "[a](docs/data.md#models)", "[a](data.md#models)"),
        ("data.md", "[a](../README.md) [b](look.md)", "[a](index.md) [b](look.md)"),
        ("results/README.md", "[a](../data.md) [b](../../README.md)", "[a](../data.md) [b](../index.md)"),
        ("data.md", "[a](https://example.com) [b](#here)", "[a](https://example.com) [b](#here)"),
        ("data.md", "[a](gone.md)", "[a](gone.md)"),
        ("data.md", "```python needs=timm,torch\n1\n```", "```python\n1\n```"),
    ],
)
def test_links_of_the_repository_become_those_of_the_site(site_pages, page, text, expected):
    there = {"index.md", "data.md", "look.md", "results/README.md"}
    files = SimpleNamespace(get_file_from_path=lambda path: path if path in there else None)
    page = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    assert site_pages.on_page_markdown(text, page=page, files=files) == expected


@pytest.mark.long
def test_what_leads_nowhere_fails_make_docs(tmp_path):
    for path in ROOT.iterdir():
        if path.name not in ("docs", "build", ".cache"):
            (tmp_path / path.name).symlink_to(path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    with (tmp_path / "docs" / "look.md").open("a", encoding="utf-8") as page:
        page.write("[a](gone.md) [b](data.md#gone) [c](../gone.py)\n")
    (tmp_path / "docs" / "unlisted.md").write_text("# Unlisted\n", encoding="utf-8")
    (command,) = re.findall(r"\$\(BIN\)/mkdocs (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", *command.split()], check=False, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    warned = "\n".join(warnings)
    assert all(name in warned for name in ("gone.md", "data.md#gone", "../gone.py")), done.stderr
    assert "unlisted.md" in done.stderr
    assert "Aborted with 4 warnings" in done.stdout  # and nothing else
