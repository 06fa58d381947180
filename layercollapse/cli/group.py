"""The command group: errors as one line, and what several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from layercollapse._version import __version__
from layercollapse.cli.experiment import with_folder
from layercollapse.cli.recipe import Recipe
from layercollapse.errors import LayerCollapseError, require

if TYPE_CHECKING:
    import click
else:
    click = require("click", "run")


class BadInput(click.ClickException):
    """A `LayerCollapseError` on the command line: one line, and the status of a wrong argument."""

    exit_code = 2


class Commands(click.Group):
    """A group whose commands show a `LayerCollapseError` without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LayerCollapseError as error:
            raise BadInput(str(error)) from error


def about(name: str) -> str:
    """What a key means that another command has as an option of its own."""
    return Recipe.model_fields[name].description or ""


DATA_DIR = click.option("--data-dir", metavar="FOLDER", help="The same as --data idx:FOLDER.")


def keys_given(values: dict[str, Any], data_dir: str | None) -> dict[str, Any]:
    """What of a recipe's keys was given as options."""
    given = {name: value for name, value in values.items() if value is not None}
    return {**given, "data": with_folder(given.get("data"), data_dir)} if data_dir else given


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="layercollapse")
def layercollapse() -> None:
    """Remove whole layers from trained rectifier networks: prune until layers are linear, then merge them."""
