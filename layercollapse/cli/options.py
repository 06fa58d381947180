"""The keys of a recipe as options of the command line: what a key means and what it defaults to is said once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from layercollapse.cli.keys import Keys
from layercollapse.cli.recipe import default_of, groups
from layercollapse.errors import require

if TYPE_CHECKING:
    import click
else:
    click = require("click", "run")


def flag(name: str) -> str:
    """The option of a key."""
    return "--" + name.replace("_", "-")


def options(keys: type[Keys]) -> Callable[[Callable], Callable]:
    """A decorator that gives a command an option for each key; None is passed for those that were not given."""

    def decorate(command: Callable) -> Callable:
        for name in reversed(keys.model_fields):
            command = _option(keys, name)(command)
        return command

    return decorate


def _option(keys: type[Keys], name: str) -> Callable[[Callable], Callable]:
    field = keys.model_fields[name]
    about = field.description or ""
    if default := default_of(keys, name):
        about += f"  [default: {default}]"
    if field.annotation is bool:
        return click.option(flag(name), name, is_flag=True, default=None, help=about)
    if field.annotation == bool | None:
        return click.option(f"{flag(name)}/--no-{flag(name)[2:]}", name, default=None, help=about)
    if field.default == {}:
        # None, not an empty tuple, where it is not given.
        return click.option(
            flag(name),
            name,
            multiple=True,
            metavar="NAME=VALUE",
            callback=lambda _, __, given: given or None,
            help=about,
        )
    schema = keys.model_json_schema()["properties"][name]
    kind = schema.get("type") or next((one["type"] for one in schema.get("anyOf", ()) if "type" in one), "")
    metavar = {"integer": "N", "number": "X", "array": "N,N..."}.get(kind, "TEXT")
    if names := schema.get("enum") or next((one["enum"] for one in schema.get("anyOf", ()) if "enum" in one), None):
        metavar = f"[{'|'.join(names)}]"
    return click.option(flag(name), name, metavar=metavar, help=about)


class GroupedCommand(click.Command):
    """A command whose help has its options under the headings of the keys that they are."""

    def __init__(self, *args: Any, keys: type[Keys], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keys = keys

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each group, then those that are no keys."""
        shown = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        rows = {p.name: row for p in shown if (row := p.get_help_record(ctx)) is not None}
        for heading, names in groups(self.keys):
            with formatter.section(heading):
                formatter.write_dl([rows.pop(name) for name in names if name in rows])
        with formatter.section("Options"):
            formatter.write_dl(list(rows.values()))
