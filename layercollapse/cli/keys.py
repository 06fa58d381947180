"""What recipes and the command line have in common: keys with a default, a meaning and limits; errors of one line."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any

from layercollapse.errors import LayerCollapseError, require

if TYPE_CHECKING:
    import pydantic
else:
    pydantic = require("pydantic", "run")

# What pydantic says -> what was expected; the braces are filled from the error's context.
_EXPECTED = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "dict_type": "names and values",
}


def key(default: Any, text: str, *, otherwise: str | None = None, **limits: Any) -> Any:
    """A key of a recipe, which is an option of the command line as well.

    Args:
        default: its value where it is not given; None lets the program decide.
        text: what it means: the help text, the comment in a recipe, and the description in the schema.
        otherwise: in words, what None comes to.
        limits: for `pydantic.Field`, for example ``ge=1``.
    """
    extra: Any = {"otherwise": otherwise} if otherwise else None
    return pydantic.Field(default, description=text, json_schema_extra=extra, **limits)


def one_of(known: Collection[str]) -> Any:
    """The type of a text that must be one of some names."""

    def check(value: str) -> str:
        if value not in known:
            raise ValueError(f"one of {', '.join(known)}")
        return value

    return Annotated[
        str, pydantic.AfterValidator(check), pydantic.WithJsonSchema({"type": "string", "enum": list(known)})
    ]


def several(kind: Any) -> Any:
    """The type of several values, which a text has with commas between."""

    def split(value: Any) -> Any:
        return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    return Annotated[tuple[kind, ...], pydantic.BeforeValidator(split)]


def named_values() -> Any:
    """The type of names with values, which texts have as NAME=VALUE, the value as in YAML."""

    def split(value: Any) -> Any:
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) and "=" in one for one in value):
            return value
        read = require("yaml", "run").safe_load
        return {name: read(text) for name, _, text in (one.partition("=") for one in value)}

    return Annotated[dict[str, Any], pydantic.BeforeValidator(split)]


class Keys(pydantic.BaseModel):
    """A group of keys; its docstring is the heading, and a class that inherits from it has its keys first."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            raise LayerCollapseError(_message(error, type(self))) from error


def _message(error: pydantic.ValidationError, keys: type[Keys]) -> str:
    """The first thing that is wrong, as the rest of the package says it."""
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else "recipe"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, keys.model_fields, n=1)
        return f"recipe: expected keys of `layercollapse run --print-recipe`, got {name!r}" + (
            f"; did you mean {near[0]!r}?" if near else ""
        )
    expected, got, context = _EXPECTED.get(first["type"]), repr(first["input"]), first.get("ctx", {})
    if first["type"] == "value_error":
        expected = str(context["error"])
    elif expected is not None:
        expected = expected.format(**context)
        got = str(first["input"]) if context else got  # a number, as a text where it is an option
    return f"{name}: expected {expected or first['msg']}, got {got}"
