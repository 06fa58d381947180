"""The entry point of `layercollapse`: one line for an error, exit status 2, no traceback."""

from __future__ import annotations

import sys

from layercollapse.errors import LayerCollapseError


def main() -> None:
    """Run the command line; the commands are in `layercollapse.cli.commands`."""
    try:
        from layercollapse.cli.commands import layercollapse
    except LayerCollapseError as error:  # click or rich is missing: the message says what to install
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    layercollapse(prog_name="layercollapse")
