"""The cost model: how long layers and networks take on a device, measured in turns, and what the times decide."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from layercollapse._util.modes import evaluating
from layercollapse._util.timing import in_turns
from layercollapse.compiler.backend.emit import build
from layercollapse.compiler.ir.records import Affine, ConstantMap
from layercollapse.graph.export import call_arguments, copied

Name = TypeVar("Name", bound=Hashable)

# Of two times that differ by less, neither is called faster. Medians of one network in turns with copies of itself
# differed by 1 to 4 % on one core of a quiet machine, and by tens of per cent on a busy one: an outcome that matters
# has to come twice.
MARGIN = 0.03


class CostModel(Protocol):
    """What the choice between variants is made by."""

    def layer(self, op: Affine, inputs: tuple[int, ...]) -> float:
        """Cost of a layer on an input (N, I, *spatial) or (N, *, I), in ms."""

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
    """Median times, measured; layers of the same sizes are measured once.

    Args:
        device: where the models work.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._layers: dict[tuple[Any, ...], float] = {}

    def layer(self, op: Affine, inputs: tuple[int, ...]) -> float:
        """See `CostModel`."""
        channels = list(inputs)
        channels[op.channel_dim] = op.inputs  # channels may have gone since the shape was noted
        key = (op.size, op.geometry, op.groups, op.border_weight is None, tuple(channels), op.dtype)
        if key not in self._layers:
            # Zeros are as fast as anything else: nothing that is merged is computed for this.
            zeros = replace(op, weight=torch.zeros(op.size, dtype=op.dtype))
            parts = [build(zeros, self._device).eval()]
            if op.border_weight is not None:
                border = ConstantMap(op.border_weight, op.bias, op.geometry, (), op.dtype)
                parts.append(build(border, self._device).eval())
            # Here they leave the user's random numbers alone.
            x = torch.zeros(channels, dtype=op.dtype, device=self._device)
            with torch.inference_mode():
                call = partial(_total, parts, x)
                self._layers[key] = in_turns([call], self._device, seconds=0.0, warmup=3, minimum=15)[0]
        return self._layers[key]

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


def _total(parts: list[nn.Module], x: torch.Tensor) -> torch.Tensor:
    return torch.stack([part(x) for part in parts]).sum(0)


def ordered(times: Mapping[Name, float], names: Iterable[Name], first: Name) -> tuple[Name, ...]:
    """The names by time; the first keeps its place against those that are within the margin."""
    return tuple(sorted(names, key=lambda name: times[name] * (1 - MARGIN if name == first else 1)))
