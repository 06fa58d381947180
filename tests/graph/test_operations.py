"""The table of operations: each has one row, which every reader of the table agrees with."""

from __future__ import annotations

from collections import Counter

from layercollapse.compiler.frontend.converters import CONVERTERS
from layercollapse.graph.operations import MOVES, OPERATIONS, TABLE, Does


def test_an_operation_has_one_row() -> None:
    names = Counter(row.name.format(dims) for row in TABLE for dims in ((1, 2, 3) if "{}" in row.name else (1,)))
    assert [name for name, count in names.items() if count > 1] == []


def test_what_becomes_a_record_has_a_row() -> None:
    assert set(CONVERTERS) <= set(OPERATIONS)


def test_the_schema_of_a_view_agrees() -> None:
    """What the schema calls a view is one in the table; the table may know more."""
    for packet, row in OPERATIONS.items():
        schemas = [getattr(packet, name)._schema for name in packet.overloads()]
        views = any(not s.is_mutable and any(a.alias_info is not None for a in s.arguments) for s in schemas)
        moves = row.does in MOVES or row.does in (Does.SAME, Does.CAST)
        assert not (views and moves) or row.view, packet
