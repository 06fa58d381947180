"""The floor of all strategies: a site drawn at random becomes the identity."""

from __future__ import annotations

import random

from layercollapse.strategies.base import Action, Situation, Strategy


class Random(Strategy):
    """One site a step, drawn by the run's seed and the number of the step."""

    def propose(self, situation: Situation) -> Action | None:
        """A site that still bends."""
        names = [layer.name for layer in situation.bending]
        if not names:
            return None
        return Action(linear={random.Random(f"{situation.seed} {len(situation.steps)}").choice(names): "identity"})
