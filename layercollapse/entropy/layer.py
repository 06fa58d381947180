"""The entropy of one site: its counts, and what follows from them.

Source: "Layer Collapse Can be Induced by Unstructured Pruning" (arXiv 2404.16890), equations 3 to 5; the states
follow from which pieces of a rectifier were used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from layercollapse.errors import LayerCollapseError
from layercollapse.ops.patterns import SignPatterns

STATES = ("off", "on", "mixed", "saturated")
OFF, ON, MIXED, SATURATED = range(4)
ZEROS = ("ignore", "off", "on")
AVERAGES = ("all", "active")


@dataclass(frozen=True, eq=False)
class LayerEntropy:
    """What one rectifier site saw.

    Attributes:
        name: the site, ``module.path`` or ``module.path#2``.
        kind: the rectifier, for example ``"relu"``.
        counts: int64 (C, 4) on the CPU: negative, zero, positive, NaN pre-activations per neuron, relative to the
            lower bend; (C, 5) for a rectifier with an upper bend, the last: those at or above it.
        zeros: how exact zeros count in `entropy`: ``"ignore"``, with the negatives (``"off"``) or with the
            positives (``"on"``).
        average: over which neurons `mean` averages: ``"all"`` or ``"active"`` (those with entropy > 0).
        patterns: the joint patterns of the neurons' signs, on the CPU; None where they were not counted.
    """

    name: str
    kind: str
    counts: Tensor
    zeros: str = "ignore"
    average: str = "all"
    patterns: SignPatterns | None = None

    def __post_init__(self) -> None:
        _choose("zeros", self.zeros, ZEROS)
        _choose("average", self.average, AVERAGES)
        c = self.counts
        if not isinstance(c, Tensor) or c.dtype != torch.int64 or c.ndim != 2 or c.shape[1] not in (4, 5):
            got = f"{c.dtype} {tuple(c.shape)}" if isinstance(c, Tensor) else type(c).__name__
            raise LayerCollapseError(f"counts of {self.name!r}: expected int64 (C, 4) or (C, 5), got {got}")
        if bool((c < 0).any()) or (c.shape[1] == 5 and bool((c[:, 4] > c[:, 2]).any())):
            raise LayerCollapseError(
                f"counts of {self.name!r}: expected non-negative counts, with no more values at the upper bend than "
                "positive ones"
            )
        if bool((c[:, 3] > 0).any()):
            raise LayerCollapseError(
                f"activations of {self.name!r}: expected numbers, got NaN in {int((c[:, 3] > 0).sum())} of "
                f"{len(c)} neurons"
            )
        if self.patterns is not None and self.patterns.channels != len(c):
            raise LayerCollapseError(
                f"patterns of {self.name!r}: expected those of {len(c)} neurons, got {self.patterns.channels}"
            )

    @property
    def neurons(self) -> int:
        """Number of neurons C."""
        return len(self.counts)

    @property
    def samples(self) -> int:
        """Values seen per neuron: samples times positions."""
        return int(self.counts[:, :3].sum(1).max()) if self.neurons else 0

    @property
    def entropy(self) -> Tensor:
        """Entropy of every neuron in bits, float64 (C,).

        With p the share of values in each piece of the rectifier (off, on; and saturated if it has an upper bend):
        H = −Σ p·log₂p. H = 0 exactly when all values lie in one piece, at most 1 for two pieces, log₂3 for three.
        """
        pieces = self._pieces(self.zeros).double()
        share = pieces / pieces.sum(1, keepdim=True).clamp(min=1)
        bits = torch.special.entr(share).sum(1) / math.log(2)  # (C,)
        # Rounding gives −0.0 for a share of 1, and 1 + 2⁻⁵² for some halves.
        return bits.abs().clamp(max=math.log2(self.counts.shape[1] - 2))

    @property
    def mean(self) -> float:
        """Mean entropy in bits over the neurons that `average` names."""
        return self.mean_over(self.average)

    def mean_over(self, average: str) -> float:
        """Mean entropy in bits over ``"all"`` neurons or over the ``"active"`` ones; 0 if there are none."""
        _choose("average", average, AVERAGES)
        entropy = self.entropy
        if average == "active":
            entropy = entropy[entropy > 0]
        return float(entropy.mean()) if len(entropy) else 0.0

    @property
    def states(self) -> Tensor:
        """State of every neuron, int8 (C,): an index into `STATES`. It does not depend on `zeros`.

        off: never above the lower bend; on: never below it (nor at the upper one); saturated: always at or above
        the upper bend; mixed: anything else, where the rectifier is not linear on the data seen.
        """
        pieces = self._pieces("ignore") > 0
        states = self.counts.new_full((self.neurons,), OFF, dtype=torch.int8)
        states[pieces[:, 1]] = ON
        states[pieces[:, 2]] = SATURATED
        states[pieces.sum(1) > 1] = MIXED
        return states

    @property
    def rarer(self) -> Tensor:
        """Share of every neuron's values outside the piece that has most of them, float64 (C,): 0 where it is linear.

        Zeros count as in `states`: for neither side.
        """
        pieces = self._pieces("ignore").double()
        total = pieces.sum(1)
        return (total - pieces.amax(1)) / total.clamp(min=1)

    @property
    def likeliest(self) -> Tensor:
        """The piece that most of every neuron's values are in, int8 (C,): `OFF`, `ON` or `SATURATED`; off of equals."""
        return torch.tensor([OFF, ON, SATURATED], dtype=torch.int8)[self._pieces("off").argmax(1)]

    def count(self, state: str) -> int:
        """Number of neurons in a state: ``"off"``, ``"on"``, ``"mixed"`` or ``"saturated"``."""
        return int((self.states == _choose("state", state, STATES)).sum())

    @property
    def mixed(self) -> int:
        """Number of neurons for which the rectifier is not linear."""
        return self.count("mixed")

    @property
    def collapsible(self) -> bool:
        """Whether something was seen and no neuron is mixed: the rectifier was linear on all the data."""
        return self.samples > 0 and self.mixed == 0

    def _pieces(self, zeros: str) -> Tensor:
        """Values per piece of the rectifier, int64 (C, 3): off, on, saturated."""
        off, zero, on = self.counts[:, 0], self.counts[:, 1], self.counts[:, 2]
        saturated = self.counts[:, 4] if self.counts.shape[1] == 5 else torch.zeros_like(zero)
        on = on - saturated
        if zeros == "off":
            off = off + zero
        elif zeros == "on":
            on = on + zero
        else:
            # A zero fits the off and the on piece alike, but not the saturated one: 0 and 6 are no single piece.
            on = torch.where((off == 0) & (on == 0) & (saturated > 0), zero, on)
        return torch.stack([off, on, saturated], dim=1)


def _choose(argument: str, value: str, choices: tuple[str, ...]) -> int:
    """Index of a value among its choices, or a clear error."""
    if not isinstance(value, str) or value not in choices:
        raise LayerCollapseError(f"{argument}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
    return choices.index(value)
