"""What passes for a number, for torch and NumPy alike: rules that need neither."""

from __future__ import annotations

import math
import operator
from typing import SupportsFloat


def integer(value: object) -> int | None:
    """Return an integer of 64 bits as an int; None for anything else, a bool too."""
    if isinstance(value, bool):
        return None
    try:
        number = value if isinstance(value, int) else operator.index(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):  # an array of several entries; a tensor without values
        return None
    return number if -(2**63) <= number < 2**63 else None


def is_bound(value: object) -> bool:
    """Whether a number is above 0 as a float32, of which the smallest is 2**-149: half of it and less round to 0."""
    if not isinstance(value, float):
        if isinstance(value, bool) or not isinstance(value, SupportsFloat):
            return False
        try:
            value = float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            return False
    return math.ldexp(1, -150) < value
