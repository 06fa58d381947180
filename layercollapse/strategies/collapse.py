"""The strategy of this package: many sites at once, halved where accuracy is lost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor, fx

from layercollapse.graph.capture import Capture
from layercollapse.graph.meta import VALUE
from layercollapse.strategies.base import LINE, Action, Situation, Strategy, Taken


class Collapse(Strategy):
    """Several sites a step become the identity, or, where the rectifier is smooth (GELU and kin), the lines that are
    nearest to it on the data. A network that has lost too much by it is trained once more; if that is not enough, half
    as many sites go from the best step on.

    Sites that read a sum of branches go last: without them regions reach through the sums, but they are what keeps a
    residual network from being linear. Among these, and among the others, those in front of a smaller map go last: what
    is linear between two of them is one layer of a stride, which is little work. Otherwise low entropies go first. No
    step has all the sites of one that lost too much.

    Args:
        share: of the sites that are left, how many a step takes at first.
    """

    patience = 6

    def __init__(self, share: float = 0.75) -> None:
        self.share = share

    def propose(self, situation: Situation) -> Action | None:
        """The next sites; None where each that is left would make up, with the best step's, what lost too much."""
        steps, captured = situation.steps, situation.pruner.capture
        if not steps[-1].within and len(steps) > 1 and set(steps[-1].linear) != set(steps[-2].linear):
            return Action(rest=True)
        best = next(step for step in steps if step.best)
        lost = [some for step in steps if not step.within and not (some := set(step.linear)) <= set(best.linear)]

        def hopeless(names: Iterable[str]) -> bool:
            """Whether these, beside the best step's, are all of a step's that lost too much."""
            return any(some <= {*best.linear, *names} for some in lost)

        left = [name for name in situation.linearizable if name not in best.linear and not hopeless([name])]
        order = sorted(left, key=lambda name: (*_place(captured, name), best.entropy[name]))
        failed = tried_since(steps, best)
        many = max(1, min((len(names) // 2 for names in failed), default=math.ceil(self.share * len(order))))
        while many > 1 and hopeless(order[:many]):
            many -= 1
        return Action(dict.fromkeys(order[:many], LINE), back=bool(failed)) if order else None


def tried_since(steps: Sequence[Taken], best: Taken) -> list[set[str]]:
    """The sites that each step after the best one had more than it, all of which lost too much."""
    after = steps[steps.index(best) + 1 :]
    return [names for step in after if (names := set(step.linear) - set(best.linear))]


def _place(captured: Capture, name: str) -> tuple[bool, bool]:
    """Whether a site reads a sum of branches, and whether it is in front of a smaller map."""
    call = captured.call_of(captured.site(name))
    source = call.args[0]
    sums = isinstance(source, fx.Node) and sum(x.name not in captured.tensors for x in source.all_input_nodes) > 1
    return sums, any(_positions(user) < _positions(call) for user in call.users)


def _positions(node: fx.Node) -> int:
    """Positions of a map (N, C, *spatial), as of the example; 1 of what is none."""
    value = VALUE.get(node)
    return math.prod(map(int, value.shape[2:])) if isinstance(value, Tensor) else 1
