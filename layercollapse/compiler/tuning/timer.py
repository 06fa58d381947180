"""Times of modules in turns, and what they decide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from layercollapse.export import call_arguments, copied
from layercollapse.measure import in_turns
from layercollapse.modes import evaluating

# Of two times that differ by less, neither is called faster. Medians of one network in turns with copies of itself
# differed by 1 to 4 % on one core of a quiet machine, and by tens of per cent on a busy one: an outcome that matters
# has to come twice.
MARGIN = 0.03


def timed(
    models: Mapping[str, nn.Module], example_inputs: Any, device: torch.device, *, seconds: float, passes: int
) -> dict[str, float]:
    """Median time of a forward pass of each model in evaluation mode, in ms.

    Args:
        models: by name; they take turns.
        example_inputs: for all of them, see `collapse`.
        device: where they work.
        seconds: stop after this long in all, but for a few passes of each.
        passes: of each, after which it stops in any case.
    """
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
        return dict(zip(models, in_turns(calls, device, **limits), strict=True))


def ordered(times: Mapping[str, float], names: Iterable[str], first: str) -> tuple[str, ...]:
    """The names by time; the first keeps its place against those that are within the margin."""
    return tuple(sorted(names, key=lambda name: times[name] * (1 - MARGIN if name == first else 1)))
