"""What a step of a run does before the network is trained again, and what a strategy knows when it says so."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

from torch import nn

from layercollapse.entropy.layer import LayerEntropy
from layercollapse.entropy.report import EntropyReport
from layercollapse.graph.rectifiers import BY_KIND
from layercollapse.prune.least_squares import fit_lines
from layercollapse.prune.linearize import Becomes
from layercollapse.prune.pruner import Pruner

LINE = "line"
BATCHES = 16  # on which lines are fitted


@dataclass(frozen=True)
class Action:
    """What happens before the next training.

    Attributes:
        linear: sites that are made linear, and what they become; see `layercollapse.linearize`. `LINE`: the
            identity where the rectifier is piecewise linear; elsewhere (GELU and kin) the lines that are nearest to it
            on some of the data, in the network that is gone back to.
        prune: keyword arguments of `Pruner.step`, or None: no weights are removed.
        back: whether the best step so far is gone back to first, since the last ones lost too much accuracy.
        rest: whether the network is trained again as it is, where there is nothing else.
    """

    linear: Mapping[str, Becomes] = field(default_factory=dict)
    prune: Mapping[str, Any] | None = None
    back: bool = False
    rest: bool = False

    @property
    def empty(self) -> bool:
        """Whether nothing is to happen, not even a training."""
        return not self.linear and self.prune is None and not self.rest


@dataclass(frozen=True)
class Taken:
    """A step that has been taken.

    Attributes:
        linear: the sites that were linear in it.
        within: whether its accuracy was within the budget.
        best: whether it is the one that would be collapsed now.
        entropy: mean bits per neuron of each site, by name.
    """

    linear: tuple[str, ...]
    within: bool
    best: bool
    entropy: Mapping[str, float]


@dataclass(frozen=True)
class Situation:
    """What a strategy knows.

    Attributes:
        report: the entropies, now.
        pruner: of the model.
        model: as the last training left it.
        data: batches as `run` was given, each an input, a tuple that starts with one, or a dict.
        evaluate: the validation accuracy of a model, in percent.
        steps: the steps so far, the dense network first.
        prune: what the settings of the run say of pruning: keyword arguments of `Pruner.step`.
        seed: of the run.
    """

    report: EntropyReport
    pruner: Pruner
    model: nn.Module
    data: Iterable[Any]
    evaluate: Callable[[nn.Module], float]
    steps: Sequence[Taken]
    prune: Mapping[str, Any]
    seed: int = 0

    @cached_property
    def bending(self) -> tuple[LayerEntropy, ...]:
        """The sites that can be made linear and are not, with what was counted there, in execution order."""
        return tuple(self.report[site.name] for site in self.pruner.linearizable)

    @cached_property
    def linearizable(self) -> tuple[str, ...]:
        """The sites that can be made linear, also those that are, in execution order."""
        names = {site.name for site in self.pruner.linearizable} | set(self.pruner.linear)
        return tuple(site.name for site in self.pruner.capture.sites if site.name in names)


class Strategy(ABC):
    """Says what each step of a run does.

    Attributes:
        patience: steps in a row below the accuracy budget after which the run ends.
    """

    patience = 2

    @abstractmethod
    def propose(self, situation: Situation) -> Action | None:
        """What happens before the next training; None: nothing is left to do.

        It depends on the situation alone, so that a run that is resumed goes on as it would have.
        """


def with_lines(
    linear: Mapping[str, Becomes], model: nn.Module, pruner: Pruner, data: Iterable[Any]
) -> dict[str, Becomes]:
    """What the sites of an action become, with the identity or fitted lines in the place of `LINE`.

    Args:
        linear: as in `Action`.
        model: as it is when the sites are made linear.
        pruner: of the model.
        data: as `Situation.data`.
    """
    captured = pruner.capture
    names = [name for name, becomes in linear.items() if isinstance(becomes, str) and becomes == LINE]
    smooth = [name for name in names if not BY_KIND[captured.site(name).kind].piecewise_linear]
    lines: dict[str, Becomes] = {**linear, **dict.fromkeys(names, "identity")}
    if smooth:
        lines.update(fit_lines(model, smooth, islice(data, BATCHES), pruner.example_inputs, captured=captured))
    return lines


class Together(Strategy):
    """Several strategies: the sites of all that propose some, the pruning of the last that does."""

    def __init__(self, parts: Sequence[Strategy]) -> None:
        self.parts = list(parts)
        self.patience = max(part.patience for part in self.parts)

    def propose(self, situation: Situation) -> Action | None:
        """What the parts propose, together."""
        actions = [action for part in self.parts if (action := part.propose(situation)) is not None]
        if not actions:
            return None
        linear = {name: becomes for action in actions for name, becomes in action.linear.items()}
        prune = next((action.prune for action in reversed(actions) if action.prune is not None), None)
        return Action(linear, prune, any(a.back for a in actions), any(a.rest for a in actions))
