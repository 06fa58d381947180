"""What `evaluate` and `test` say of a model: one number, whatever type it comes in, as an accuracy in percent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from numbers import Real
from typing import Any

from torch import nn

from layercollapse._util.ranks import Ranks
from layercollapse.errors import LayerCollapseError
from layercollapse.pipeline.processes import from_first

UNITS = ("percent", "fraction")
_SLACK = 1e-3  # per cent: a sum of float32 may be a little above 100


def number(value: Any, argument: str, expected: str = "a finite number") -> float:
    """A number as a float: an int, float, fraction or decimal, or an array or tensor of one element.

    Raises:
        LayerCollapseError: it is a bool, a text, complex, not finite, or of several elements.
    """
    plain = value
    if callable(item := getattr(value, "item", None)):
        try:
            plain = item()
        except (TypeError, ValueError, RuntimeError):
            plain = None
    try:
        result = math.nan if isinstance(plain, bool) or not isinstance(plain, Real | Decimal) else float(plain)
    except (OverflowError, ValueError):
        result = math.nan
    if not math.isfinite(result):
        raise LayerCollapseError(f"{argument}: expected {expected}, got {value!r}")
    return result


def check_unit(unit: str | None) -> None:
    """Raise unless a unit is one of `UNITS`, or None."""
    if unit is not None and unit not in UNITS:
        raise LayerCollapseError(f"unit: expected {', '.join(map(repr, UNITS))} or None, got {unit!r}")


@dataclass
class Metric:
    """A function of the user that gives an accuracy, as one that gives percent, always as a float.

    Attributes:
        function: what is called with a model.
        argument: what messages call it.
        unit: ``"percent"``, or ``"fraction"``, which is multiplied by 100. None: percent, but that a first number from
            0 to 1 is refused, as it may be either.
        ranks: the processes that call it together; what the first of them gets counts for all.
    """

    function: Callable[[nn.Module], Any]
    argument: str
    unit: str | None = None
    ranks: Ranks = field(default_factory=Ranks)

    def __call__(self, model: nn.Module) -> float:
        """The accuracy of a model in percent.

        Raises:
            LayerCollapseError: the function returned no number, or one that is no accuracy in the unit.
        """
        unit = self.unit or "percent"
        scale = "in percent" if unit == "percent" else "from 0 to 1 (unit='fraction')"
        expected = f"a function that returns an accuracy {scale}"
        found = self.function(model)
        value = from_first(self.ranks, lambda: number(found, self.argument, expected))
        if self.unit is None and 0 <= value <= 1:
            raise LayerCollapseError(
                f"{self.argument}: expected an accuracy in percent, as max_drop is in percentage points, got "
                f"{value:g}, which may be a fraction: say which with unit='fraction' or unit='percent'"
            )
        percent = 100 * value if unit == "fraction" else value
        if not 0 <= percent <= 100 + _SLACK:
            raise LayerCollapseError(f"{self.argument}: expected {expected}, got {value:g}")
        self.unit = unit
        return percent
