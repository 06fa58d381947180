"""The rectifier calls of a forward pass whose results nothing reads: an exported graph does not have them.

A backbone computes a last activation that a segmentation head leaves aside; an `EntropyProbe` counts it all the same.
Of several calls in one module, which are missing decides which of the others is the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from layercollapse.errors import LayerCollapseError
from layercollapse.graph.export import copied
from layercollapse.graph.observer import ForwardObserver
from layercollapse.graph.watch import RectifierCall, Signs

Calls = dict[str, list[RectifierCall]]  # path of a module -> its rectifier calls, in order


class Called(NamedTuple):
    """One call of a model.

    Attributes:
        calls: the rectifier calls it made; None where they cannot be seen (scripted modules).
        given: copies of the positional and keyword arguments, which the model was called with.
        outputs: what it returned.
    """

    calls: Calls | None
    given: tuple[tuple, dict[str, Any]]
    outputs: Any


class _CallObserver(ForwardObserver):
    """Keeps the calls of the last forward pass."""

    calls: Mapping[str, RectifierCall] = {}

    def _commit(self, seen: Mapping[str, tuple[RectifierCall, Signs]]) -> None:
        self.calls = {name: call for name, (call, _) in seen.items()}


def run(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Called:
    """Call a model, and see which rectifiers it calls."""
    given = copied((args, kwargs))
    try:
        with _CallObserver(model) as observer:
            outputs = model(*given[0], **given[1])
    except LayerCollapseError:
        given = copied((args, kwargs))  # it may have worked in place on the others
        return Called(None, given, model(*given[0], **given[1]))
    calls: Calls = {}
    for name, call in observer.calls.items():
        calls.setdefault(name.partition("#")[0], []).append(call)
    return Called(calls, given, outputs)


def places(calls: Sequence[RectifierCall], read: Sequence[RectifierCall]) -> tuple[list[int], bool]:
    """Where in a module's calls those stand that the graph has, and whether they can stand nowhere else.

    Args:
        calls: all calls of the module.
        read: those in the graph, in order; where they are no part of `made`, they count as all of it.
    """
    first = _leftmost(calls, read)
    last = _leftmost(calls[::-1], read[::-1])
    if first is None or last is None:
        return list(range(len(read))), len(calls) == len(read)
    return first, first == [len(calls) - 1 - place for place in reversed(last)]


def _leftmost(calls: Sequence[RectifierCall], read: Sequence[RectifierCall]) -> list[int] | None:
    positions: list[int] = []
    for call in read:
        place = next((i for i in range(positions[-1] + 1 if positions else 0, len(calls)) if calls[i] == call), None)
        if place is None:
            return None
        positions.append(place)
    return positions
