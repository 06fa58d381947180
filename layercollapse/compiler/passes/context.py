"""What a pass may do, and what it has to say: given to every pass beside the graph."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import fx


class Group(enum.Enum):
    """Passes that may cost time, though they save multiply-accumulates: the autotuner also tries without them."""

    SEQUENCE = enum.auto()  # layers in sequence become one
    PARALLEL = enum.auto()  # layers side by side become one
    THRIFT = enum.auto()  # of layers that one may replace, those stay that are less work; without it, the fewest
    CONCATENATION = enum.auto()  # a layer behind a concatenation becomes one for each part
    POOLING = enum.auto()  # a layer moves behind a pooling, or is composed with it
    TRIM = enum.auto()  # outer taps of kernels go
    CHANNELS = enum.auto()  # channels that nothing reads go; without it, by eights
    RECTIFIERS = enum.auto()  # rectifiers that never bend go


# Name of a node -> the groups that do not act at it.
Omitted: TypeAlias = Callable[[str], Collection[Group]]


@dataclass
class PassContext:
    """What is given to the passes over one graph.

    Attributes:
        omitted: which groups do not act at a node of some name.
        repad: whether layers may merge that differ at the border then; see `algebra.repadded`.
        applied: filled by passes: the groups that had something to do.
        repadded: filled by passes: the layers that merged though they differ at the border then, first and last.
        examined: filled by passes: root of a region -> its records, where no better way was found.
    """

    omitted: Omitted = lambda name: ()
    repad: bool = False
    applied: set[Group] = field(default_factory=set)
    repadded: list[tuple[str, str]] = field(default_factory=list)
    examined: dict[str, list[Any]] = field(default_factory=dict)

    def permits(self, group: Group, *nodes: fx.Node) -> bool:
        """Whether the passes of a group are to act at all of these nodes."""
        return not any(group in self.omitted(node.name) for node in nodes)
