"""The cost model: how long networks take on a device, measured in turns, and what the times decide."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from layercollapse._util.modes import evaluating
from layercollapse._util.timing import in_turns
from layercollapse.graph.export import call_arguments, copied

Name = TypeVar("Name", bound=Hashable)

# Of two times that differ by less, neither is called faster. Medians of one network in turns with copies of itself
# differed by 1 to 4 % on one core of a quiet machine, and by tens of per cent on a busy one: an outcome that matters
# has to come twice.
MARGIN = 0.03


class CostModel(Protocol):
    """What the choice between variants is made by."""

    def networks(
        self, models: Mapping[Name, nn.Module], example_inputs: Any, *, seconds: float, passes: int
    ) -> dict[Name, float]:
        """Cost of a forward pass of each model in evaluation mode, in ms.

        Args:
            models: by name; they take turns.
            example_inputs: for all of them, see `collapse`.
            seconds: stop after this long in all, but for a few passes of each.
            passes: of each, after which it stops in any case.
        """


class Latency:
    """Median times, measured.

    Args:
        device: where the models work.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def networks(
        self, models: Mapping[Name, nn.Module], example_inputs: Any, *, seconds: float, passes: int
    ) -> dict[Name, float]:
        """See `CostModel`."""
        args, kwargs = call_arguments(example_inputs)
        calls = []
        for model in models.values():
            # A model may work in place on what it is given: each has its own.
            own = copied((args, kwargs))
            calls.append(partial(model, *own[0], **own[1]))
        with ExitStack() as stack, torch.no_grad():
            for model in models.values():
                stack.enter_context(evaluating(model))
            limits: Any = {"seconds": seconds, "warmup": 2, "minimum": 6, "maximum": passes}
            return dict(zip(models, in_turns(calls, self._device, **limits), strict=True))


def ordered(times: Mapping[Name, float], names: Iterable[Name], first: Name) -> tuple[Name, ...]:
    """The names by time; the first keeps its place against those that are within the margin."""
    return tuple(sorted(names, key=lambda name: times[name] * (1 - MARGIN if name == first else 1)))
