"""A hook of mkdocs: pages that are made when the site is built, and links that hold in the repository and on the site.

The start page is README.md; the reference is made of the commands, of the recipe's model, and of the docstrings. What
pages link to outside of docs/ is copied.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import layercollapse as package
from layercollapse.cli.commands import layercollapse
from layercollapse.cli.recipe import Recipe, default_of, groups

ROOT = Path(__file__).parents[1]
DOCS = "docs"
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)(?=[)#])")


def command_line() -> str:
    """The help of every command, as a terminal shows it."""
    lines = ["# Command line", "", f"{layercollapse.help} Every key of a [recipe](recipe.md) is an option of `run`."]
    for name, command in layercollapse.commands.items():
        context = click.Context(command, info_name=f"layercollapse {name}", max_content_width=100, terminal_width=100)
        lines += ["", f"## layercollapse {name}", "", "```text", command.get_help(context), "```"]
    return "\n".join(lines)


def recipe() -> str:
    """A table of the recipe's keys under each of their headings."""
    lines = [
        "# Recipe",
        "",
        "A recipe is a YAML file with any of these keys; what it does not name has its default. Every run writes its "
        "own into its folder. `layercollapse run recipe.yaml KEY=VALUE` changes one, "
        "`layercollapse run --print-recipe` prints all, and [the schema](../recipe.schema.json) is for editors.",
    ]
    for heading, names in groups(Recipe):
        lines += ["", f"## {heading}", "", "| key | meaning | default |", "|---|---|---|"]
        for name in names:
            cells = (f"`{name}`", Recipe.model_fields[name].description or "", default_of(Recipe, name))
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |")
    return "\n".join(lines)


def python() -> Iterator[tuple[str, str]]:
    """The pages of the Python reference: the name of each, and what mkdocstrings fills in."""
    own = [name for name in package.__all__ if name not in ("__version__", "ops", "data", "models", "train")]
    yield "layercollapse", _documented("layercollapse", [f"layercollapse.{name}" for name in own])
    yield "ops", _documented("layercollapse.ops", [f"layercollapse.ops.{name}" for name in package.ops.__all__])
    modules = sorted(path.stem for path in (ROOT / "layercollapse" / "integrations").glob("[!_]*.py"))
    yield (
        "integrations",
        _documented("layercollapse.integrations", [f"layercollapse.integrations.{m}" for m in modules]),
    )


def _documented(title: str, names: list[str]) -> str:
    return "\n\n".join([f"# {title}", *(f"::: {name}" for name in names)])


def source(page: str) -> str:
    """The file of the repository that a page of the site is made of."""
    return next((name for name, other in PAGES.items() if other == page), f"{DOCS}/{page}")


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add what the folder of the documentation does not hold."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    pages = {"command-line": command_line(), "recipe": recipe(), **dict(python())}
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    for page in list(files.documentation_pages()):
        folder = posixpath.dirname(source(page.src_uri))
        for link in LINK.findall(page.content_string):
            target = posixpath.normpath(posixpath.join(folder, link))
            if not target.startswith((f"{DOCS}/", "..")) and target not in PAGES and (ROOT / target).is_file():
                files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Turn links of the repository into those of the site, and leave out what only the tests read."""
    uri = page.file.src_uri
    folder = posixpath.dirname(source(uri))

    def on_site(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        target = PAGES.get(target, target.removeprefix(f"{DOCS}/"))
        for candidate in (target, f"{target}/README.md"):
            if files.get_file_from_path(candidate) is not None:
                return os.path.relpath(candidate, posixpath.dirname(uri) or ".")
        return match[0]  # mkdocs says so

    return LINK.sub(on_site, re.sub(r"^```python .+$", "```python", markdown, flags=re.MULTILINE))
