"""What docs/site_pages.py makes of the code and of the links; make docs builds the whole site and is strict."""

import importlib.util
import re
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
