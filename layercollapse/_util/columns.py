"""Plain text in columns."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], right: Collection[int], *, rule: bool = False) -> list[str]:
    """Rows as lines of columns, two blanks between.

    Args:
        rows: all of one length.
        right: the numbers of the columns that are aligned to the right.
        rule: whether a line of dashes follows the first row.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [*lines[:1], *(["  ".join("-" * width for width in widths)] if rule else []), *lines[1:]]
