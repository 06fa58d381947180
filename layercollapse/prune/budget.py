"""How many weights every layer loses at a pruning step: plain Python, no tensors.

    allocate(layers, amount=0.5, rule="nepenthe")    # {"layer1.0.relu": 1180, "layer1.1.relu": 64, ...}

A rule is a function ``(layers, amount) -> {name: count}``. Adding one takes the function and its `@register`.
The rule "global" needs the weights themselves, so the `Pruner` supplies it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

from layercollapse.errors import LayerCollapseError

Rule = Callable[[Sequence["LayerState"], float], Mapping[str, int]]

RULES: dict[str, Rule] = {}
GLOBAL = "global"


@dataclass(frozen=True)
class LayerState:
    """What a budget rule may know of a layer.

    Attributes:
        name: the layer; the `Pruner` uses the name of the rectifier site that its weights feed.
        entropy: mean sign entropy of its neurons in bits.
        entropy_active: the same over the neurons with entropy > 0 only.
        mean_abs: mean |w| over the weights kept.
        kept: number of weights not pruned yet.
        numel: number of weights.
        floor: number of weights that must stay.
    """

    name: str
    entropy: float
    entropy_active: float
    mean_abs: float
    kept: int
    numel: int
    floor: int = 0

    def __post_init__(self) -> None:
        for field in ("entropy", "entropy_active", "mean_abs"):
            value = getattr(self, field)
            if not isinstance(value, Real) or not 0 <= float(value) < math.inf:
                raise LayerCollapseError(f"{field} of {self.name!r}: expected a number of at least 0, got {value!r}")
        if not 0 <= self.kept <= self.numel or self.floor < 0:
            raise LayerCollapseError(
                f"layer {self.name!r}: expected 0 <= kept <= numel and floor >= 0, got kept={self.kept}, "
                f"numel={self.numel}, floor={self.floor}"
            )

    @property
    def available(self) -> int:
        """How many weights the layer may lose: the kept ones down to the floor."""
        return max(0, self.kept - self.floor)


def allocate(layers: Sequence[LayerState], amount: float, rule: str | Rule = "nepenthe") -> dict[str, int]:
    """Divide a pruning budget over layers.

    Args:
        layers: the layers; names are unique.
        amount: a float in (0, 1] is a fraction of the kept weights of the layers that take part; an int of at
            least 1 is a number of weights. What exceeds the weights that may go prunes them down to the floors.
        rule: a name in `RULES`, or a function ``(layers, amount) -> {name: count}``; layers that it leaves out
            lose nothing.

    Returns:
        Weights to remove, for every layer. For the rules of this module they sum to the budget exactly.

    Raises:
        LayerCollapseError: an amount or a rule that is not one of the above, or counts that a layer cannot lose.
    """
    _check_amount(amount)
    names = [layer.name for layer in layers]
    if len(set(names)) < len(names):
        raise LayerCollapseError(f"layers: expected unique names, got {', '.join(names)}")
    if isinstance(rule, str):
        if rule == GLOBAL:
            raise LayerCollapseError("rule: 'global' ranks the weights themselves; use it through Pruner.step")
        if rule not in RULES:
            raise LayerCollapseError(f"rule: expected {', '.join(RULES)}, {GLOBAL} or a function, got {rule!r}")
        rule = RULES[rule]
    elif not callable(rule):
        raise LayerCollapseError(f"rule: expected a name or a function, got {type(rule).__name__}")
    return _checked(layers, rule(layers, amount))


def register(name: str) -> Callable[[Rule], Rule]:
    """Decorator: make a rule known by a name."""

    def add(rule: Rule) -> Rule:
        RULES[name] = rule
        return rule

    return add


@register("nepenthe")
def nepenthe(layers: Sequence[LayerState], amount: float) -> dict[str, int]:
    """Budget by entropy-weighted magnitude (arXiv 2404.16890, equations 7 to 9).

    Layers of entropy 0, and layers that may lose nothing, take no part.

        I_l = H_l · mean|w|      R_l = Σ_j I_j / I_l      A = softmax(R)      k_l = amount · Σ_j ‖w_j‖₀ · A_l
    """
    return _by_irrelevance(layers, amount, lambda layer: layer.entropy)


@register("egp")
def egp(layers: Sequence[LayerState], amount: float) -> dict[str, int]:
    """As `nepenthe`, with the entropy averaged over the active neurons (arXiv 2308.06619)."""
    return _by_irrelevance(layers, amount, lambda layer: layer.entropy_active)


@register("uniform")
def uniform(layers: Sequence[LayerState], amount: float) -> dict[str, int]:
    """Iterative magnitude pruning layer by layer: each loses the same share of its kept weights."""
    active = [layer for layer in layers if layer.available]
    return divide(active, budget(active, amount), lambda group: _normalized([float(x.kept) for x in group]))


def budget(layers: Sequence[LayerState], amount: float) -> int:
    """Number of weights that an amount means for these layers, at most what they may lose."""
    _check_amount(amount)
    wanted = int(amount) if isinstance(amount, Integral) else round(float(amount) * sum(x.kept for x in layers))
    return min(wanted, sum(layer.available for layer in layers))


def divide(
    layers: Sequence[LayerState], total: int, shares: Callable[[Sequence[LayerState]], Sequence[float]]
) -> dict[str, int]:
    """Divide a number of weights by shares, none losing more than it may.

    Layers whose share is more than they may lose, lose that; the rest is divided again among the others by shares
    of their own, until nothing overflows.

    Args:
        layers: the layers that take part.
        total: weights to remove, at most what the layers may lose together.
        shares: shares of a group of layers, of sum 1; called again for each smaller group.

    Returns:
        Counts that sum to `total`: rounded down, the units left go to the largest remainders, first come first.
    """
    removed: dict[str, int] = {}
    active = list(layers)
    while active and total:
        parts = [share * total for share in shares(active)]
        full = [layer for layer, part in zip(active, parts, strict=True) if part > layer.available]
        if not full:
            return removed | _rounded(active, parts, total)
        for layer in full:
            # min: shares sum to 1 only up to rounding, so the last of them may find a unit less than it can give.
            removed[layer.name] = min(layer.available, total)
            total -= removed[layer.name]
        active = [layer for layer in active if layer.name not in removed]
    return removed


def _by_irrelevance(
    layers: Sequence[LayerState], amount: float, entropy: Callable[[LayerState], float]
) -> dict[str, int]:
    active = [layer for layer in layers if entropy(layer) > 0 and layer.available]

    def shares(group: Sequence[LayerState]) -> list[float]:
        # Only ratios of I matter: factors of at most 1 keep the products and their sum from overflowing.
        top_entropy = max(entropy(layer) for layer in group)
        top_magnitude = max(layer.mean_abs for layer in group) or 1.0
        irrelevance = [entropy(x) / top_entropy * (x.mean_abs / top_magnitude) for x in group]
        total = math.fsum(irrelevance)
        relevance = [_ratio(total, value) for value in irrelevance]
        top = max(relevance)
        if top == math.inf:  # the limit of the formula: layers of magnitude 0 take everything
            return _normalized([float(value == math.inf) for value in relevance])
        return _normalized([math.exp(value - top) for value in relevance])

    return divide(active, budget(active, amount), shares)


def _ratio(total: float, value: float) -> float:
    return total / value if value > 0 else math.inf


def _normalized(values: Sequence[float]) -> list[float]:
    total = math.fsum(values)
    return [value / total for value in values]


def _rounded(layers: Sequence[LayerState], parts: Sequence[float], total: int) -> dict[str, int]:
    """Integers of sum `total` next to `parts`, none above what its layer may lose."""
    counts = [min(math.floor(part), layer.available) for layer, part in zip(layers, parts, strict=True)]
    order = sorted(range(len(parts)), key=lambda i: counts[i] - parts[i])  # stable: ties go to the earlier layer
    left = total - sum(counts)
    while left > 0:  # once, but for rounding errors in parts beyond 2**53
        for i in order:
            step = min(1, layers[i].available - counts[i], left)
            counts[i], left = counts[i] + step, left - step
    return {layer.name: count for layer, count in zip(layers, counts, strict=True)}


def _checked(layers: Sequence[LayerState], counts: object) -> dict[str, int]:
    """A rule's answer, for every layer, as ints that the layers can lose."""
    if not isinstance(counts, Mapping):
        raise LayerCollapseError(f"rule: expected a dict of counts by layer, got {type(counts).__name__}")
    unknown = sorted(str(name) for name in counts.keys() - {layer.name for layer in layers})
    if unknown:
        raise LayerCollapseError(f"rule: expected counts for the layers given, got unknown {', '.join(unknown)}")
    for layer in layers:
        count = counts.get(layer.name, 0)
        if isinstance(count, bool) or not isinstance(count, Integral):
            raise LayerCollapseError(f"rule: expected an int for {layer.name!r}, got {count!r}")
        if not 0 <= int(count) <= layer.available:
            raise LayerCollapseError(
                f"rule: expected between 0 and {layer.available} weights of {layer.name!r} ({layer.kept} kept, floor "
                f"{layer.floor}), got {count}"
            )
    return {layer.name: int(counts.get(layer.name, 0)) for layer in layers}


def _check_amount(amount: object) -> None:
    if isinstance(amount, bool) or not isinstance(amount, Real):
        raise LayerCollapseError(f"amount: expected a fraction or a number of weights, got {amount!r}")
    if isinstance(amount, Integral):
        if int(amount) < 1:
            raise LayerCollapseError(f"amount: expected at least 1 weight as an int, got {amount}")
    elif not 0 < float(amount) <= 1:
        raise LayerCollapseError(f"amount: expected a fraction in (0, 1] as a float, got {amount}")
