"""The one error class of the package, and the one way to say that an optional dependency is missing."""

from __future__ import annotations

import importlib
from types import ModuleType


class LayerCollapseError(ValueError):
    """Raised for every bad input; the message names the argument, what was expected, and what came."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: name to import, for example ``"jinja2"``.
        extra: the extra of this package that installs it, for example ``"run"``.

    Raises:
        LayerCollapseError: the module is not installed; the message gives the command that installs it.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or package != error.name.partition(".")[0]:
            raise
        raise LayerCollapseError(
            f"this needs the package {package!r}, which is not installed: pip install 'layercollapse[{extra}]'"
        ) from error
