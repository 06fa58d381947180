"""The strategy of this package: many sites at once, halved where accuracy is lost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import fx

from layercollapse.graph.capture import Capture
from layercollapse.strategies.base import Action, Situation, Strategy, Taken


class Collapse(Strategy):
    """Several sites a step become the identity. A network that has lost too much by it is trained once more; if that is
    not enough, half as many sites go from the best step on.

    Sites that read a sum of branches go last: without them regions reach through the sums, but they are what keeps a
    residual network from being linear. Within both kinds those of lowest entropy go first. A single site that loses too
    much stays, and the next one is tried.

    Args:
        share: of the sites that are left, how many a step takes at first.
    """

    patience = 6

    def __init__(self, share: float = 0.35) -> None:
        self.share = share

    def propose(self, situation: Situation) -> Action | None:
        """The next sites; None where none is left that has not been tried alone."""
        steps, captured = situation.steps, situation.pruner.capture
        if not steps[-1].within and len(steps) > 1 and set(steps[-1].linear) != set(steps[-2].linear):
            return Action(rest=True)
        best = next(step for step in steps if step.best)
        failed = tried_since(steps, best)
        stuck = {name for names in failed if len(names) == 1 for name in names}
        left = [name for name in situation.linearizable if name not in best.linear and name not in stuck]
        order = sorted(left, key=lambda name: (_reads_sum(captured, name), best.entropy[name]))
        many = min((len(names) // 2 for names in failed), default=math.ceil(self.share * len(order)))
        return Action(dict.fromkeys(order[: max(1, many)], "identity"), back=bool(failed)) if order else None


def tried_since(steps: Sequence[Taken], best: Taken) -> list[set[str]]:
    """The sites that each step after the best one had more than it, all of which lost too much."""
    after = steps[steps.index(best) + 1 :]
    return [names for step in after if (names := set(step.linear) - set(best.linear))]


def _reads_sum(captured: Capture, name: str) -> bool:
    source = captured.call_of(captured.site(name)).args[0]
    return isinstance(source, fx.Node) and sum(x.name not in captured.tensors for x in source.all_input_nodes) > 1
