"""The activations that models write out in Python: ``0.5 * x * (1 + torch.tanh(...))``, ``torch.maximum(x, zeros)``.

Each is one row of `PATTERNS`. It is not a picture of the calls: what they compute of one number is compared with what
the row computes, so that the order of operands, where constant factors stand and whether a power is a product do not
matter. `layercollapse.graph.terms` gives the expressions: those of a running model and those of a graph alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch

from layercollapse.graph import rectifiers

aten = torch.ops.aten

Number = Callable[[float], float]
# An operation and what it is applied to: a constant, None, or the place of an operand: "x" for the variable, "3" for
# the call in the fourth place. The first call is the last one made.
Call = tuple[str, tuple[float | str | None, ...]]

# Constants are written with eight digits or so, which float32 cannot tell from more of them; float64 can.
_PRECISE, _ROUGH = 2e-12, 1e-7
_FAR = 1e6
_FEW = (0.0, -1.0, 2.0, -2.5, 0.3, 40.0)


def _sigmoid(x: float) -> float:
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    return math.exp(x) / (1 + math.exp(x))


def _softplus(x: float, beta: float = 1.0, threshold: float = 20.0) -> float:
    return x if beta * x > threshold else math.log1p(math.exp(beta * x)) / beta


def _clamp(x: float, low: float | None = None, high: float | None = None) -> float:
    x = x if low is None else max(x, low)
    return x if high is None else min(x, high)


def _power(x: float, exponent: float) -> float:
    if exponent != int(exponent) or not 0 <= exponent <= 8:
        raise ValueError("a root of a negative number")
    return x ** int(exponent)


# What the operations of torch compute of numbers. A comparison gives a bool, which counts as 0 or 1.
FUNCTIONS: dict[str, Callable[..., float]] = {
    "same": lambda x: x,
    "add": lambda x, y, alpha=1.0: x + alpha * y,
    "sub": lambda x, y, alpha=1.0: x - alpha * y,
    "rsub": lambda x, y, alpha=1.0: y - alpha * x,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "rdiv": lambda x, y: y / x,
    "neg": lambda x: -x,
    "pow": _power,
    "square": lambda x: x * x,
    "sqrt": math.sqrt,
    "abs": abs,
    "sign": lambda x: float((x > 0) - (x < 0)),
    "tanh": math.tanh,
    "sigmoid": _sigmoid,
    "erf": math.erf,
    "softplus": _softplus,
    "hardsigmoid": lambda x: min(max(x + 3, 0.0), 6.0) / 6,
    "relu": lambda x: max(x, 0.0),
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "leaky_relu": lambda x, slope=0.01: x if x > 0 else slope * x,
    "hardtanh": lambda x, low=-1.0, high=1.0: min(max(x, low), high),
    "threshold": lambda x, at, value: x if x > at else value,
    "clamp": _clamp,
    "clamp_min": max,
    "clamp_max": min,
    "maximum": max,
    "minimum": min,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "not": lambda x: not x,
    "where": lambda condition, x, y: x if condition else y,
}
SMOOTH = {"same", "add", "sub", "rsub", "mul", "div", "rdiv", "neg", "pow", "square", "sqrt"}
COMPARISONS = {"gt", "ge", "lt", "le"}
# At a bend two of the operands are the same number.
_BENDING = COMPARISONS | {"maximum", "minimum", "clamp", "clamp_min", "clamp_max", "hardtanh", "threshold"}


@dataclass(frozen=True)
class Pattern:
    """One activation.

    Attributes:
        function: of one number and of the parameters, if it has some.
        call: (operator, arguments, keyword arguments) of the rectifier that computes it, from its parameters; what
            the arguments mean says `rectifiers.describe`.
        fit: the parameters of a function that may be this one, or None if it cannot be.
    """

    function: Callable[..., float]
    call: Callable[..., tuple[Any, tuple, dict[str, Any]]]
    fit: Callable[[Number], tuple[float, ...] | None] = lambda f: ()


def _slope(f: Number) -> tuple[float, ...] | None:
    return (-f(-1.0),) if 0 < -f(-1.0) < 1 else None


def _top(f: Number) -> tuple[float, ...] | None:
    return (f(_FAR),) if 0 < f(_FAR) < _FAR / 2 else None


def _factor(f: Number) -> tuple[float, ...] | None:
    """The factor k of a GELU by tanh, f(1) = (1 + tanh(1.044715 k)) / 2, if it is √(2/π) with a digit or two less."""
    if not 0.8 < f(1.0) < 0.9:
        return None
    factor = math.atanh(2 * f(1.0) - 1) / (1 + rectifiers.CUBIC)
    return (factor,) if abs(factor - math.sqrt(2 / math.pi)) < _ROUGH else None


def _gelu(x: float, factor: float = math.sqrt(2 / math.pi)) -> float:
    return 0.5 * x * (1 + math.tanh(factor * (x + rectifiers.CUBIC * x**3)))


PATTERNS: tuple[Pattern, ...] = (
    Pattern(lambda x: max(x, 0.0), lambda: (aten.relu.default, (), {})),
    Pattern(lambda x, top: min(max(x, 0.0), top), lambda top: (aten.hardtanh.default, (0.0, top), {}), _top),
    Pattern(lambda x, slope: x if x > 0 else slope * x, lambda slope: (aten.leaky_relu.default, (slope,), {}), _slope),
    Pattern(lambda x: 0.5 * x * (1 + math.erf(x * math.sqrt(0.5))), lambda: (aten.gelu.default, (), {})),
    Pattern(_gelu, lambda: (aten.gelu.default, (), {"approximate": "tanh"})),
    Pattern(_gelu, lambda factor: (rectifiers.tanh_gelu, (factor,), {}), _factor),
    Pattern(lambda x: x * _sigmoid(x), lambda: (aten.silu.default, (), {})),
    Pattern(lambda x: x * _sigmoid(rectifiers.QUICK * x), lambda: (rectifiers.quick_gelu, (), {})),
    Pattern(lambda x: x * math.tanh(_softplus(x)), lambda: (aten.mish.default, (), {})),
    Pattern(lambda x: x * min(max(x + 3, 0.0), 6.0) / 6, lambda: (aten.hardswish.default, (), {})),
)


@dataclass(frozen=True)
class Match:
    """What an expression computes of its variable: ``scale`` times a rectifier.

    Attributes:
        operator: the rectifier as a graph calls it, with `arguments` and `keywords` behind its input.
        upper: its upper bend, or None.
    """

    operator: Any
    arguments: tuple
    keywords: tuple[tuple[str, Any], ...]
    kind: str
    upper: float | None
    scale: float


@lru_cache(maxsize=4096)
def recognise(body: tuple[Call, ...], precise: bool) -> Match | None:
    """The rectifier that an expression of one variable computes, up to a positive factor, or None.

    Args:
        body: the calls, the last one first.
        precise: whether the constants must be right to twelve digits (float64), or to seven.
    """
    try:
        return _recognise(body, _PRECISE if precise else _ROUGH)
    except (ArithmeticError, ValueError, TypeError):
        return None  # no number where the rectifiers have one: a division by zero, the root of a negative number


def _recognise(body: tuple[Call, ...], tolerance: float) -> Match | None:
    f = function(body)
    slope = f(_FAR) / _FAR
    points: list[float] | None = None
    for scale in (1.0, slope) if slope > 1e-9 and abs(slope - 1) > tolerance else (1.0,):

        def scaled(x: float, scale: float = scale) -> float:
            return f(x) / scale

        for pattern in PATTERNS:
            parameters = pattern.fit(scaled)
            if parameters is None or not _agree(scaled, pattern, parameters, _FEW, tolerance):
                continue
            points = points or _points(body)
            if _agree(scaled, pattern, parameters, points, tolerance):
                operator, arguments, keywords = pattern.call(*parameters)
                row = rectifiers.BY_OPERATOR[getattr(operator, "overloadpacket", operator)]
                called = rectifiers.describe(row, torch.float64, arguments, keywords)
                assert called is not None
                return Match(operator, arguments, tuple(keywords.items()), called[0], called[2], scale)
    return None


@lru_cache(maxsize=4096)
def same_sign(body: tuple[Call, ...], bend: float = 0.0) -> bool:
    """Whether an expression is below, at and above a bend just where its variable is."""
    try:
        f = function(body)
        return all((f(x) > bend, f(x) < bend) == (x > bend, x < bend) for x in [*_points(body), bend, bend + 1e-9])
    except (ArithmeticError, ValueError, TypeError):
        return False


@lru_cache(maxsize=4096)
def reaches(body: tuple[Call, ...], top: float) -> bool:
    """Whether an expression is at least a number just where its variable is."""
    try:
        f = function(body)
        near = (top, math.nextafter(top, 0), top * (1 - 1e-6), top * (1 + 1e-6))
        return all((f(x) >= top) == (x >= top) for x in [*_points(body), *near])
    except (ArithmeticError, ValueError, TypeError):
        return False


def function(body: Sequence[Call], at: int = 0) -> Number:
    """What the calls compute of the variable: the value of the one at a place."""
    count = len(body)
    steps = []
    for operation, operands in reversed(body[at:]):
        places = tuple(
            (count if operand == "x" else count - 1 - int(operand)) if isinstance(operand, str) else None
            for operand in operands
        )
        steps.append((FUNCTIONS[operation], tuple(zip(places, operands, strict=True))))

    def f(x: float) -> float:
        values: list[Any] = [x if place == count else 0.0 for place in range(count + 1)]
        for step, (compute, operands) in enumerate(steps):
            values[step] = compute(*[o if place is None else values[place] for place, o in operands])
        return values[len(steps) - 1]

    return f


def _agree(
    f: Number, pattern: Pattern, parameters: tuple[float, ...], points: Iterable[float], tolerance: float
) -> bool:
    return all(abs(f(x) - pattern.function(x, *parameters)) <= tolerance * abs(x) for x in points)


def _points(body: Sequence[Call]) -> list[float]:
    """Numbers that tell functions apart: of every size, around each bend, and between any two bends.

    A bend is where an operation's value changes its sign, or where two of its operands are equal. They are looked for
    from the variable on, so that one that lies between two others has points on both sides of it.
    """
    sizes = [10 ** (k / 4) for k in range(-48, 49)] + [0.37 * k for k in range(1, 30)]
    constants = {abs(c) for _, operands in body for c in operands if isinstance(c, float) and 0 < abs(c) < 1e12}
    points = sorted({0.0, *sizes, *constants, *(-x for x in (*sizes, *constants))})
    bends: list[float] = []
    for at in reversed(range(len(body))):
        for g in _differences(body, at):
            crossings = _crossings(g, points)
            bends = sorted({*bends, *crossings})
            around = [x + side * max(abs(x), 1e-12) * 1e-9 for x in crossings for side in (-1, 0, 1)]
            between = [(low + high) / 2 for low, high in pairwise(bends)]
            points = sorted({*points, *around, *between})
    return points


def _differences(body: Sequence[Call], at: int) -> list[Number]:
    """The functions whose signs change where the call at a place bends."""
    operation, operands = body[at]
    values = [function(body, at)] if operation not in (COMPARISONS | {"not"}) else []
    if operation == "relu6":
        operation, operands = "hardtanh", (operands[0], 0.0, 6.0)
    if operation in _BENDING:
        first, *others = (_operand(body, operand) for operand in operands if operand is not None)
        values += [lambda x, other=other: first(x) - other(x) for other in others]  # type: ignore[misc]
    return values


def _operand(body: Sequence[Call], operand: float | str) -> Number:
    if operand == "x":
        return lambda x: x
    if isinstance(operand, str):
        return function(body, int(operand))
    return lambda x: operand


def _crossings(g: Number, points: Sequence[float]) -> list[float]:
    """Where a function changes its sign, also where it becomes 0."""

    def sign(x: float) -> int:
        value = g(x)
        return (value > 0) - (value < 0)

    crossings: list[float] = []
    for ends, (before, after) in zip(pairwise(points), pairwise(map(sign, points)), strict=True):
        if before == after:
            continue
        if len(crossings) == 32:
            raise ValueError("a function that oscillates")
        low, high = ends
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if sign(middle) == before else (low, middle)
        crossings.append(high)
    return crossings
