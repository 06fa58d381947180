"""EASIER: the rectifier of lowest entropy becomes the identity (arXiv 2404.18949)."""

from __future__ import annotations

from dataclasses import replace

from layercollapse.strategies.base import Action, Situation, Strategy


class Easier(Strategy):
    """One site a step: that of lowest mean entropy becomes the identity, and the network is trained again.

    The entropy is the paper's: zeros count as on, and the mean is over all neurons.
    """

    def propose(self, situation: Situation) -> Action | None:
        """The site of lowest entropy, the first of equals."""
        layers = [replace(layer, zeros="on", average="all") for layer in situation.bending]
        if not layers:
            return None
        return Action(linear={min(layers, key=lambda layer: layer.mean).name: "identity"})
