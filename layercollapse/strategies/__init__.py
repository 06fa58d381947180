"""What each step of a run does before the next training: pruning, rectifiers made linear, or both.

A strategy is one file with one class, a line in `STRATEGIES`, and its name on the command line.
"""

from __future__ import annotations

from collections.abc import Callable

from layercollapse.errors import LayerCollapseError
from layercollapse.strategies.base import LINE, Action, Situation, Strategy, Taken, Together, with_lines
from layercollapse.strategies.collapse import Collapse
from layercollapse.strategies.easier import Easier
from layercollapse.strategies.pruning import Pruning
from layercollapse.strategies.random import Random
from layercollapse.strategies.tlc import TLC

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "prune": Pruning,
    "easier": Easier,
    "tlc": TLC,
    "random": Random,
    "collapse": Collapse,
}


def strategy_of(name: str | Strategy) -> Strategy:
    """The strategy of a name, or of several names: ``"collapse+prune"``.

    Raises:
        LayerCollapseError: a name that none has.
    """
    if isinstance(name, Strategy):
        return name
    if not isinstance(name, str) or not name:
        raise LayerCollapseError(f"strategy: expected a name or a Strategy, got {name!r}")
    unknown = [part for part in name.split("+") if part not in STRATEGIES]
    if unknown:
        raise LayerCollapseError(f"strategy: expected {', '.join(STRATEGIES)}, or some joined by +, got {name!r}")
    parts = [STRATEGIES[part]() for part in name.split("+")]
    return parts[0] if len(parts) == 1 else Together(parts)


__all__ = ["LINE", "STRATEGIES", "Action", "Situation", "Strategy", "Taken", "strategy_of", "with_lines"]
