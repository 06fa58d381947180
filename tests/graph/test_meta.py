"""Typed keys of the metadata of nodes."""

from __future__ import annotations

import pytest
from torch import fx

from layercollapse.graph.meta import MAPS, ORIGIN, SHAPE, inherit


def test_what_is_known_of_a_node_and_of_another() -> None:
    graph = fx.Graph()
    one, two, three = (graph.placeholder(name) for name in ("one", "two", "three"))
    assert one not in SHAPE
    assert SHAPE.get(one) is None
    with pytest.raises(KeyError, match="shape"):
        SHAPE[one]
    SHAPE[one], ORIGIN[one] = (2, 3), "relu"
    MAPS[two], MAPS[three] = (4, 4), (5, 5)
    inherit(two, one, SHAPE, MAPS)  # of the keys what is known
    assert (SHAPE[two], ORIGIN.get(two), MAPS[two]) == ((2, 3), None, (4, 4))
    inherit(three, one)
    assert (SHAPE[three], ORIGIN[three], MAPS.get(three)) == ((2, 3), "relu", None)
    SHAPE[three] = (1,)
    assert SHAPE[one] == (2, 3)
