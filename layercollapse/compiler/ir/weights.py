"""Weights that cost no memory while nobody reads them.

Folding a batch norm or dropping channels would hold every weight of a network in float64, twice the size of a
float32 model. A `Lazy` weight keeps the model's own tensor and what was done to it; the float64 tensor lives only
while something reads it. What a layer would have if it were merged is a `Deferred` weight: its size is known, so that
what it costs is, and it is computed if the layer is taken. Rules need not know: `Affine.weight` is always a float64
tensor when read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from layercollapse._util.sharded import whole


@dataclass(frozen=True, eq=False)
class Lazy:
    """``row[:, None] * own[rows][:, columns] * column[None, :]``, taps alike.

    Attributes:
        own: the model's tensor (O', I', *kernel) or (O',), any dtype and device; never written to. One that is sharded
            is gathered whenever it is read.
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
        value = whole(self.own.detach())
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
        value = whole(self.own.detach().ne(0)).cpu()
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


@dataclass(frozen=True, eq=False)
class Deferred:
    """A weight that is computed from others whenever it is read.

    Attributes:
        shape: its size, (O, I, *kernel).
        of: the weights that it is computed from, as they are held.
        make: takes these as float64 tensors, and gives the weight.
    """

    shape: tuple[int, ...]
    of: tuple[Any, ...]
    make: Callable[..., Tensor]

    def tensor(self) -> Tensor:
        """The weight, float64; each weight that it is made of is computed once, and let go when it has been used."""
        order, seen, waiting = list[Deferred](), set[int](), [(self, False)]
        while waiting:
            weight, ready = waiting.pop()
            if ready:
                order.append(weight)
            elif id(weight) not in seen:
                seen.add(id(weight))
                waiting.append((weight, True))
                waiting += [(other, False) for other in weight.of if isinstance(other, Deferred)]
        last = {id(other): weight for weight in order for other in weight.of}
        values: dict[int, Tensor] = {}
        for weight in order:
            parts = [
                values[id(x)] if isinstance(x, Deferred) else x.tensor() if isinstance(x, Lazy) else x
                for x in weight.of
            ]
            values[id(weight)] = weight.make(*parts)
            for other in weight.of:
                if last[id(other)] is weight:
                    values.pop(id(other), None)
        return values[id(self)]

    def size(self) -> tuple[int, ...]:
        """Its shape."""
        return self.shape

    def nonzero(self) -> Tensor:
        """Mask of the entries that are not zero, bool (O, I, *kernel)."""
        return self.tensor().ne(0)

    def scaled(self, row: Tensor | None = None, column: Tensor | None = None) -> Deferred:
        """With every row, and every column, times a number."""
        return Deferred(self.shape, (self,), lambda weight: _scaled(weight, row, column))

    def taken(self, rows: Tensor | None = None, columns: Tensor | None = None) -> Deferred:
        """With the rows, and the columns, that masks keep."""
        kept = [n if mask is None else int(mask.sum()) for n, mask in zip(self.shape, (rows, columns), strict=False)]
        return Deferred((*kept, *self.shape[2:]), (self,), lambda weight: _taken(weight, rows, columns))


class Float64:
    """An attribute that holds a float64 tensor, a `Lazy` or a `Deferred` weight, and is read as a float64 tensor."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __set__(self, record: Any, value: Tensor | Lazy) -> None:
        record.__dict__[self._name] = value

    def __get__(self, record: Any, kind: Any = None) -> Any:
        value: Any = record.__dict__[self._name] if record is not None else self
        return value if isinstance(value, Tensor) or record is None else value.tensor()


def raw_weight(record: Any) -> Any:
    """A record's weight as it is held: a tensor, a `Lazy` or a `Deferred` one."""
    return record.__dict__["weight"]


def computed(record: Any) -> Any:
    """The record with its weight computed, if that was deferred."""
    value = getattr(record, "__dict__", {}).get("weight")
    return replace(record, weight=value.tensor()) if isinstance(value, Deferred) else record


def nonzero(record: Any) -> Tensor:
    """Mask of a record's weights that are not zero, bool (O, I, *kernel)."""
    value = raw_weight(record)
    return value.ne(0) if isinstance(value, Tensor) else value.nonzero()


def scaled(record: Any, row: Tensor | None = None, column: Tensor | None = None) -> Any:
    """A record's weight (O, I, *kernel) with a factor for each row, float64 (O,), and each column, float64 (I,)."""
    value = raw_weight(record)
    return _scaled(value, row, column) if isinstance(value, Tensor) else value.scaled(row, column)


def taken(record: Any, rows: Tensor | None = None, columns: Tensor | None = None) -> Any:
    """A record's weight (O, I, *kernel) with the rows, and the columns, that masks keep."""
    value = raw_weight(record)
    return _taken(value, rows, columns) if isinstance(value, Tensor) else value.taken(rows, columns)


def _scaled(value: Tensor, row: Tensor | None, column: Tensor | None) -> Tensor:
    if row is not None:
        value = value * row.reshape(-1, *[1] * (value.ndim - 1))
    return value if column is None else value * column.reshape(1, -1, *[1] * (value.ndim - 2))


def _taken(value: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    value = value if rows is None else value[rows]
    return value if columns is None else value[:, columns]


def _product(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a * b
