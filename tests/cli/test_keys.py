"""Keys of a recipe: what pydantic finds wrong, said as the rest of the package says it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from layercollapse.cli.keys import Keys, key, one_of
from layercollapse.errors import LayerCollapseError

if TYPE_CHECKING:
    Color = str
else:
    Color = one_of(["red", "green"])


class Small(Keys):
    """Small"""

    epochs: int = key(5, "Passes.", ge=1)
    lr: float | None = key(None, "Learning rate.", otherwise="0.1", gt=0)
    flip: bool = key(False, "Whether.")
    color: Color = key("red", "Which.")
    args: dict[str, int] = key({}, "More.")


def test_texts_become_what_they_are() -> None:
    small = Small(epochs="7", lr="1e-3", flip="yes", color="green", args={"a": "2"})
    assert small.model_dump() == {"epochs": 7, "lr": 1e-3, "flip": True, "color": "green", "args": {"a": 2}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"epochs": "x"}, "epochs: expected a whole number, got 'x'"),
        ({"epochs": 1.5}, "epochs: expected a whole number, got 1.5"),
        ({"lr": "fast"}, "lr: expected a number, got 'fast'"),
        ({"lr": "0"}, "lr: expected more than 0.0, got 0"),
        ({"flip": "perhaps"}, "flip: expected true or false, got 'perhaps'"),
        ({"color": "blue"}, "color: expected one of red, green, got 'blue'"),
        ({"args": 3}, "args: expected names and values, got 3"),
        ({"epoch": 3}, "recipe: expected keys of .*, got 'epoch'; did you mean 'epochs'?"),
        ({"zzz": 3}, "recipe: expected keys of .*, got 'zzz'$"),
    ],
)
def test_what_is_wrong_is_one_line(values: dict, message: str) -> None:
    with pytest.raises(LayerCollapseError, match="^" + message) as error:
        Small(**values)
    assert "\n" not in str(error.value)


def test_the_schema_has_the_meanings() -> None:
    properties = Small.model_json_schema()["properties"]
    assert properties["color"] == {
        "default": "red",
        "description": "Which.",
        "enum": ["red", "green"],
        "title": "Color",
        "type": "string",
    }
    assert properties["lr"]["otherwise"] == "0.1"
    assert properties["epochs"]["minimum"] == 1
