"""Weights that cost no memory while they only differ from the model's by scales and missing channels.

Folding a batch norm or dropping channels would hold every weight of a network in float64, twice the size of a
float32 model. A `Lazy` weight keeps the model's own tensor and what was done to it; the float64 tensor lives only
while something reads it. Rules need not know: `Affine.weight` is always a float64 tensor when read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Lazy:
    """``row[:, None] * own[rows][:, columns] * column[None, :]``, taps alike.

    Attributes:
        own: the model's tensor (O', I', *kernel) or (O',), any dtype and device; never written to.
        rows: int64 (O,), which of its rows, or None for all.
        columns: int64 (I,), which of its columns, or None for all.
        row: float64 (O,), or None for ones.
        column: float64 (I,), or None for ones.
    """

    own: Tensor
    rows: Tensor | None = None
    columns: Tensor | None = None
    row: Tensor | None = None
    column: Tensor | None = None

    def tensor(self) -> Tensor:
        """The weight, float64 on the CPU (the algebra is small, and not every accelerator has float64)."""
        value = self.own.detach()
        if self.rows is not None:
            value = value[self.rows.to(value.device)]
        if self.columns is not None:
            value = value[:, self.columns.to(value.device)]
        value = value.cpu().double()
        scales = [(self.row, (-1, *[1] * (value.ndim - 1))), (self.column, (1, -1, *[1] * (value.ndim - 2)))]
        for scale, shape in scales:
            if scale is not None:
                value = value * scale.reshape(shape)
        return value

    def size(self) -> tuple[int, ...]:
        """Its shape."""
        shape = list(self.own.shape)
        for dim, taken in enumerate((self.rows, self.columns)):
            if taken is not None:
                shape[dim] = len(taken)
        return tuple(shape)

    def nonzero(self) -> Tensor:
        """Mask of the entries that are not zero, bool (O, I, *kernel), without a float64 tensor."""
        value = self.own.detach().ne(0).cpu()
        for dim, (taken, scale) in enumerate(((self.rows, self.row), (self.columns, self.column))):
            if taken is not None:
                value = value.index_select(dim, taken.cpu())
            if scale is not None:
                value = value & scale.ne(0).reshape([-1 if d == dim else 1 for d in range(value.ndim)])
        return value

    def scaled(self, row: Tensor | None = None, column: Tensor | None = None) -> Lazy:
        """With every row, and every column, times a number."""
        return replace(self, row=_product(self.row, row), column=_product(self.column, column))

    def taken(self, rows: Tensor | None = None, columns: Tensor | None = None) -> Lazy:
        """With the rows, and the columns, that masks keep."""
        new = self
        if rows is not None:
            new = replace(
                new,
                rows=rows.nonzero().flatten() if self.rows is None else self.rows[rows],
                row=None if self.row is None else self.row[rows],
            )
        if columns is not None:
            new = replace(
                new,
                columns=columns.nonzero().flatten() if self.columns is None else self.columns[columns],
                column=None if self.column is None else self.column[columns],
            )
        return new


class Float64:
    """An attribute that holds a float64 tensor or a `Lazy` one, and is read as a float64 tensor."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __set__(self, record: Any, value: Tensor | Lazy) -> None:
        record.__dict__[self._name] = value

    def __get__(self, record: Any, kind: Any = None) -> Any:
        value = record.__dict__[self._name] if record is not None else self
        return value.tensor() if isinstance(value, Lazy) else value


def held(record: Any) -> Any:
    """A record's weight as it is held: a tensor or a `Lazy` one."""
    return record.__dict__["weight"]


def nonzero(record: Any) -> Tensor:
    """Mask of a record's weights that are not zero, bool (O, I, *kernel)."""
    value = held(record)
    return value.nonzero() if isinstance(value, Lazy) else value.ne(0)


def scaled(record: Any, row: Tensor | None = None, column: Tensor | None = None) -> Any:
    """A record's weight (O, I, *kernel) with a factor for each row, float64 (O,), and each column, float64 (I,)."""
    value = held(record)
    if isinstance(value, Lazy):
        return value.scaled(row, column)
    if row is not None:
        value = value * row.reshape(-1, *[1] * (value.ndim - 1))
    return value if column is None else value * column.reshape(1, -1, *[1] * (value.ndim - 2))


def taken(record: Any, rows: Tensor | None = None, columns: Tensor | None = None) -> Any:
    """A record's weight (O, I, *kernel) with the rows, and the columns, that masks keep."""
    value = held(record)
    if isinstance(value, Lazy):
        return value.taken(rows, columns)
    value = value if rows is None else value[rows]
    return value if columns is None else value[:, columns]


def _product(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a * b
