"""`package.module:function`: code of the user's own that makes a model or the data."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from layercollapse.errors import LayerCollapseError
from layercollapse.graph.export import reason


def find(spec: str, argument: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names; the current folder is looked in, too.

    Raises:
        LayerCollapseError: there is no such module or function, or its import fails; the message says where.
    """
    module_name, _, name = spec.partition(":")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)  # and left there: what the function imports later may be there as well
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise LayerCollapseError(f"{argument}: importing {module_name} stopped with {reason(error)}") from error
        raise LayerCollapseError(
            f"{argument}: expected a module to import in {spec!r}, got no {error.name!r} in {here} or the environment"
        ) from error
    except Exception as error:
        raise LayerCollapseError(f"{argument}: importing {module_name} stopped with {reason(error)}") from error
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        public = ", ".join(sorted(n for n, value in vars(module).items() if callable(value) and n[:1] != "_"))
        raise LayerCollapseError(
            f"{argument}: expected a function or class {name!r} in {module.__file__}, got {public or 'none'}"
        )
    return found


def call(function: Callable[..., Any], offered: Mapping[str, Any], asked: Mapping[str, Any], argument: str) -> Any:
    """Call a function with what it takes of what is offered, and with all that is asked for.

    Args:
        function: of the user.
        offered: values by name, of which those are passed that the signature has.
        asked: values by name that the user gave; one that the signature does not have is an error.
        argument: what messages call it.

    Raises:
        LayerCollapseError: it stopped with an error, of which the message gives the line.
    """
    try:
        parameters = dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        parameters = {}
    every = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    if unknown := [name for name in asked if name not in parameters and not every]:
        raise LayerCollapseError(
            f"{unknown[0]}: expected an argument of {function.__name__}, which takes {', '.join(parameters) or 'none'}"
        )
    passed = {name: value for name, value in offered.items() if name in parameters and value is not None}
    try:
        return function(**{**passed, **asked})
    except LayerCollapseError:
        raise
    except Exception as error:
        raise LayerCollapseError(f"{argument}: {function.__name__} stopped with {reason(error)}") from error
