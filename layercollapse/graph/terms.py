"""Expressions of one tensor, followed call by call, and the rectifiers of `layercollapse.graph.patterns` among them.

A running model and a captured graph are followed by the same rules, so that they find the same rectifiers in the same
order. What a tensor is made of is remembered as a term, which holds no tensor.
"""

from __future__ import annotations

import heapq
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from layercollapse.graph.patterns import COMPARISONS, FUNCTIONS, SMOOTH, Call, Match, recognise

# The calls of one rectifier, and of how many in a row a tensor's term says what it is made of.
_CALLS, _DEPTH = 24, 96

V = TypeVar("V")


class Term:
    """What a tensor is made of.

    Attributes:
        operation: one of `patterns.FUNCTIONS`, or "" for a tensor that is the start of its terms.
        operands: terms, numbers and None, in order.
        index: behind those of its operands.
        start: the one tensor that it is made of.
        bends: whether it is more than a sum or a product of that.
        dtype: of the tensor.
        shape: of the tensor, for the example inputs.
        value: the tensor, as the follower keeps it.
        match: the rectifier that it is, of the term `variable`.
        site: what the follower keeps of that.
        signs: of a variable, once they have been looked at: `watch.Signs`, its counts (C, 4).
    """

    __slots__ = (
        *("operation", "operands", "index", "start", "bends", "depth", "dtype", "shape"),
        *("value", "match", "variable", "site", "signs"),
    )

    def __init__(self, operation: str, operands: tuple[Term | float | None, ...], index: int) -> None:
        self.operation, self.operands, self.index = operation, operands, index
        terms = self.terms()
        self.start: Term = terms[0].start if terms else self
        self.bends: bool = any(term.bends for term in terms) or (bool(operation) and operation not in SMOOTH)
        self.depth: int = 1 + max((term.depth for term in terms), default=0)
        self.dtype: torch.dtype | None = None
        self.shape: tuple[int, ...] = self.start.shape if terms else ()
        self.value: Any = None
        self.match: Match | None = None
        self.variable: Term | None = None
        self.site: Any = None
        self.signs: Any = None

    def terms(self) -> list[Term]:
        return [operand for operand in self.operands if isinstance(operand, Term)]


@dataclass
class Constant:
    """A tensor of one number, known from the calls that made it.

    Attributes:
        exact: whether no call computed it in less than float64, which rounds as the processor does.
        double: whether it is float64.
    """

    number: float
    exact: bool = True
    double: bool = False
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Found:
    """A rectifier that a term is.

    Attributes:
        match: which.
        variable: the term that it reads.
        inner: the terms between the two, the last one first; that of the rectifier is the first.
    """

    match: Match
    variable: Term
    inner: tuple[Term, ...]

    def body(self, at: Term) -> tuple[Call, ...]:
        """How one of the terms between is made of the variable."""
        return _body([term for term in self.inner if term.index <= at.index], self.variable)


class Terms(ABC, Generic[V]):
    """Follows calls; a subclass says what the values are: tensors, or nodes of a graph."""

    def __init__(self) -> None:
        self._count = 0

    @abstractmethod
    def find(self, value: V) -> Term | Constant | None:
        """What is known of a value."""

    @abstractmethod
    def keep(self, value: V, known: Term | Constant) -> None:
        """Remember it, for as long as the value is there."""

    @abstractmethod
    def describe(self, value: Any) -> tuple[torch.dtype, tuple[int, ...]] | None:
        """Dtype and shape of a value, None of what is no tensor."""

    def called(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Term | Constant | None:
        """The term of what a call will give, or None.

        Args:
            name: of a function, a method or an aten operation, see `READINGS`.
            args: its arguments; values and numbers.
            kwargs: its keyword arguments.
        """
        if (constant := _constant(name, args, kwargs)) is not None:
            return Constant(constant)
        reading = self._read(name, args, kwargs)
        if reading is None:
            return None
        operation, operands = reading
        known, new = self._operands(operands)
        if known is None or (operation == "where" and not self._chooses(known[0], operands[0])):
            return None
        if all(not isinstance(operand, Term) for operand in known):
            if new is None:
                return _folded(operation, known)
            start = self._start(new)
            if start is None:
                return None
            known = [start if operand is new else operand for operand in known]
        terms = [operand for operand in known if isinstance(operand, Term)]
        if new is not None and any(operand is new for operand in known):
            return None  # of two tensors
        start = terms[0].start
        # A root in float32 is rounded as the processor does it.
        fits = all(
            _fits(o.shape, start.shape) and (o.exact or start.dtype != torch.float64)
            for o in known
            if isinstance(o, Constant)
        )
        if not fits or any(term.start is not start for term in terms) or not _computable(operation, terms):
            return None
        numbers = tuple(o.number if isinstance(o, Constant) else o for o in known)
        term = self._new(operation, numbers)
        return term if term.depth <= _DEPTH else None

    def made(self, value: V, pending: Term | Constant) -> None:
        """Keep the term of what a call has given, unless the call has rounded it or it is of another shape."""
        described = self.describe(value)
        if described is None:
            return
        dtype, shape = described
        if isinstance(pending, Constant):
            if dtype.is_complex:
                return
            if dtype != torch.float64:
                pending.number = torch.tensor(pending.number, dtype=dtype, device="cpu").item() * 1.0
            pending.double, pending.shape = dtype == torch.float64, shape
        elif shape != pending.shape or not keeps(pending, dtype):
            return
        else:
            pending.dtype = dtype
        self.keep(value, pending)

    def rectifier(self, term: Term) -> Found | None:
        """The rectifier that a term is and that none of its parts is, the nearest if several; also a scaled one."""
        if not term.bends or term.operation == "same":
            return None
        for variable, inner in _variables(term):
            if variable.dtype is None or not variable.dtype.is_floating_point:
                continue
            match = recognise(_body(inner, variable), variable.dtype == torch.float64)
            if match is not None:
                same = (match.operator, match.arguments, match.keywords)
                for part in inner[1:]:
                    own = part.match if part.variable is variable else None
                    if own is not None and (own.operator, own.arguments, own.keywords) == same:
                        return None  # times a number
                return Found(match, variable, tuple(inner))
        return None

    def _new(self, operation: str, operands: tuple[Term | float | None, ...]) -> Term:
        self._count += 1
        return Term(operation, operands, self._count)

    def _start(self, value: V) -> Term | None:
        described = self.describe(value)
        if described is None or not described[0].is_floating_point:
            return None
        term = self._new("", ())
        term.dtype, term.shape = described
        self.keep(value, term)
        return term

    def _operands(self, operands: Sequence[Any]) -> tuple[list[Any] | None, V | None]:
        """What is known of each operand, and the one tensor of which nothing is; None if they are several."""
        known: list[Any] = []
        new = None
        for operand in operands:
            if operand is None or isinstance(operand, bool | int | float):
                if operand is not None and math.isnan(operand):
                    return None, None
                known.append(operand if operand is None else float(operand))
            elif self.describe(operand) is None:
                return None, None
            else:
                term = self.find(operand)
                if term is None:
                    if new is not None and operand is not new:
                        return None, None
                    new = operand
                known.append(operand if term is None else term)
        return known, new

    def _chooses(self, condition: Any, value: Any) -> bool:
        described = self.describe(value)
        return isinstance(condition, Term) and described is not None and described[0] == torch.bool

    def _read(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[str, tuple[Any, ...]] | None:
        """The operation that a call is, and its operands."""
        reading = READINGS.get(name)
        if reading is None or "out" in kwargs or not (args or reading[1][0] in kwargs):
            return None
        operation, names = reading
        args = args or (kwargs[names[0]],)
        if operation == "same" or (len(names) == len(args) == 1 and kwargs.keys() <= _IDLE):
            return operation, (args[0],)
        if len(args) > len(names) and name not in INPLACE:
            return None
        if any(key not in names and key not in _IDLE for key in kwargs):
            return None
        operands = list(args[: len(names)])
        operands += [kwargs.get(key, _MISSING) for key in names[len(operands) :]]
        while operands[-1] is _MISSING:
            operands.pop()
        if any(operand is _MISSING for operand in operands[:2]) and operation != "clamp":
            return None
        operands = [None if operand is _MISSING else operand for operand in operands]
        if operation in {"max", "min"}:
            if len(operands) < 2 or self.describe(operands[1]) is None:
                return None  # of a dimension
            operation = f"{operation}imum"
        if operation == "where":
            if len(operands) < 3:
                return None
            described = self.describe(operands[0])
            if described is not None and described[0] != torch.bool:
                operands = [operands[1], operands[0], operands[2]]  # the method: x.where(condition, y)
        if operation == "fill":
            return ("where", (operands[1], operands[2], operands[0])) if len(operands) == 3 else None
        if operation == "put":  # x[mask] = value
            mask = operands[1][0] if isinstance(operands[1], list | tuple) and len(operands[1]) == 1 else operands[1]
            return ("where", (mask, operands[2], operands[0])) if len(operands) == 3 else None
        return operation, tuple(operands)


_MISSING: Any = object()
_IDLE = {"inplace", "memory_format"}
INPLACE = {"relu", "relu6", "hardsigmoid", "leaky_relu", "hardtanh", "threshold"}  # the last of their arguments says so

_UNARY = ("neg", "square", "sqrt", "abs", "sign", "tanh", "sigmoid", "erf", "relu", "relu6", "hardsigmoid")
_CASTS = ("to", "_to_copy", "float", "double", "half", "bfloat16", "type", "type_as", "int", "long")
# Name of a call, without the underscores around it -> the operation, and the names of its operands.
READINGS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{name: (name, ("input",)) for name in _UNARY},
    **dict.fromkeys(("contiguous", "clone", "detach", "alias", "lift_fresh_copy"), ("same", ("input",))),
    **{name.strip("_"): ("same", ("input",)) for name in _CASTS},
    **{name: (name, ("input", "other", "alpha")) for name in ("add", "sub", "rsub")},
    "subtract": ("sub", ("input", "other", "alpha")),
    "rdiv": ("rdiv", ("input", "other")),
    "rtruediv": ("rdiv", ("input", "other")),
    **dict.fromkeys(("mul", "multiply"), ("mul", ("input", "other"))),
    **dict.fromkeys(("div", "divide", "true_divide", "truediv"), ("div", ("input", "other"))),
    "pow": ("pow", ("input", "exponent")),
    "negative": ("neg", ("input",)),
    "absolute": ("abs", ("input",)),
    "special_erf": ("erf", ("input",)),
    "special_expit": ("sigmoid", ("input",)),
    "softplus": ("softplus", ("input", "beta", "threshold")),
    "leaky_relu": ("leaky_relu", ("input", "negative_slope")),
    "hardtanh": ("hardtanh", ("input", "min_val", "max_val")),
    "threshold": ("threshold", ("input", "threshold", "value")),
    **dict.fromkeys(("clamp", "clip"), ("clamp", ("input", "min", "max"))),
    "clamp_min": ("clamp_min", ("input", "min")),
    "clamp_max": ("clamp_max", ("input", "max")),
    "max": ("max", ("input", "other")),
    "min": ("min", ("input", "other")),
    **dict.fromkeys(("maximum", "fmax"), ("maximum", ("input", "other"))),
    **dict.fromkeys(("minimum", "fmin"), ("minimum", ("input", "other"))),
    **{name: (name, ("input", "other")) for name in COMPARISONS},
    "greater": ("gt", ("input", "other")),
    "greater_equal": ("ge", ("input", "other")),
    "less": ("lt", ("input", "other")),
    "less_equal": ("le", ("input", "other")),
    **dict.fromkeys(("invert", "bitwise_not", "logical_not"), ("not", ("input",))),
    "where": ("where", ("condition", "input", "other")),
    "masked_fill": ("fill", ("input", "mask", "value")),
    "setitem": ("put", ("input", "mask", "value")),
    "index_put": ("put", ("input", "indices", "values")),
}
# Name of a call that makes a tensor of one number -> that number, or the place and the name of the argument it is.
_MAKING: dict[str, float | tuple[int, str]] = {
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros"), 0.0),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), 1.0),
    **dict.fromkeys(("full", "full_like", "new_full"), (1, "fill_value")),
    **dict.fromkeys(("tensor", "as_tensor", "scalar_tensor"), (0, "data")),
    "new_tensor": (1, "data"),
}
NAMES = frozenset(READINGS) | frozenset(_MAKING)


def _constant(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> float | None:
    """The number that a call fills a tensor with."""
    maker = _MAKING.get(name)
    if not isinstance(maker, tuple):
        return None if "out" in kwargs else maker
    at, key = maker
    value = args[at] if len(args) > at else kwargs.get(key)
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if not isinstance(value, bool | int | float) or math.isnan(value) or "out" in kwargs:
        return None
    return float(value)


def _folded(operation: str, known: Sequence[Any]) -> Constant | None:
    numbers = [operand.number if isinstance(operand, Constant) else operand for operand in known]
    try:
        number = float(FUNCTIONS[operation](*numbers))
    except (ArithmeticError, ValueError, TypeError):
        return None
    parts = [operand for operand in known if isinstance(operand, Constant)]
    exact = all(part.exact for part in parts) and (operation == "same" or all(part.double for part in parts))
    return None if math.isnan(number) else Constant(number, exact)


def _fits(shape: Sequence[int], into: Sequence[int]) -> bool:
    """Whether a constant of a shape leaves the other's as it is."""
    ends = zip(reversed(shape), reversed(into), strict=False)
    return len(shape) <= len(into) and all(own in (1, other) for own, other in ends)


def _computable(operation: str, terms: Sequence[Term]) -> bool:
    """Whether torch computes of these dtypes what `patterns.FUNCTIONS` computes of numbers."""
    kinds = [term.dtype for term in terms]
    if operation == "not":
        return kinds == [torch.bool]
    if operation in ("same", "where"):
        return True
    if operation == "mul":
        return any(kind is not None and kind.is_floating_point for kind in kinds)
    return all(kind is not None and kind.is_floating_point for kind in kinds)


def keeps(term: Term, dtype: torch.dtype) -> bool:
    """Whether a result of a dtype has all digits of what it is made of."""
    if term.operation in COMPARISONS or term.operation == "not":
        return dtype == torch.bool
    kinds = [part.dtype for part in term.terms() if part.dtype is not None]
    if term.operation == "where":
        kinds = [kind for kind in kinds if kind != torch.bool]
    if term.operation == "same" and kinds == [torch.bool]:
        return True
    return dtype.is_floating_point and all(
        not kind.is_floating_point or torch.promote_types(kind, dtype) == dtype for kind in kinds
    )


def _variables(term: Term) -> Iterator[tuple[Term, list[Term]]]:
    """The terms that all of a term is made of, the nearest first, each with the terms between, the last one first."""
    waiting = [(-term.index, term)]
    seen = {term.index}
    inner: list[Term] = []
    while waiting:
        _, last = heapq.heappop(waiting)
        if inner and not waiting:
            yield last, list(inner)
        if len(inner) == _CALLS or not last.operation:
            return
        inner.append(last)
        for part in last.terms():
            if part.index not in seen:
                seen.add(part.index)
                heapq.heappush(waiting, (-part.index, part))


def _body(inner: Sequence[Term], variable: Term) -> tuple[Call, ...]:
    places = {term.index: str(place) for place, term in enumerate(inner)} | {variable.index: "x"}
    return tuple(
        (term.operation, tuple(places[o.index] if isinstance(o, Term) else o for o in term.operands)) for term in inner
    )
