"""Weights are pruned until layers are linear."""

from __future__ import annotations

from typing import Any

from layercollapse.strategies.base import Action, Situation, Strategy


class Pruning(Strategy):
    """NEPENTHE (arXiv 2404.16890) and its relatives: `Pruner.step` with a budget rule.

    Args:
        rule: as for `Pruner.step`: ``"nepenthe"``, ``"egp"`` (arXiv 2308.06619), ``"uniform"`` and ``"global"``
            (iterative magnitude pruning by layer and over all); None takes the run's.
    """

    def __init__(self, rule: Any = None) -> None:
        self.rule = rule

    def propose(self, situation: Situation) -> Action:
        """A pruning with the amount of the run."""
        return Action(prune={**situation.prune, **({} if self.rule is None else {"rule": self.rule})})
