"""Calls with the tensors of an earlier one, as a pruner makes after every step: nothing is checked or planned again.

What an op checks, and how a backend plans it, depends on where tensors lie and on their type, device, shape and
strides. Where all of this is as it was, what that call found holds, whoever owns the memory now. The comparison is the
one that guards what `torch.compile` made, in C++: with the addresses 0.25 us for a weight and its mask, where checks
and plans take 3 us.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from layercollapse.kernels.launch import capturing
from layercollapse.ops import checks, registry

try:
    from torch._C import _is_torch_function_mode_enabled, _len_torch_dispatch_stack
    from torch._C._dynamo.guards import TensorGuards
except ImportError:  # private to torch: without it, every call is checked
    TensorGuards = None  # type: ignore[assignment, misc]

MOST = 16  # calls kept of those that change weights
MOST_COUNTED = 1024  # and of those that count signs: one for each rectifier of a network


class Repeat(NamedTuple):
    """What a call with the same tensors needs.

    Attributes:
        same: compares types, devices, shapes, strides, and how torch would dispatch them.
        addresses: of the tensors.
        chosen: what else decided which backend ran.
        backend: its name.
        call: the op on this memory; takes the arguments that are no tensors, checked.
    """

    same: Callable[..., bool]
    addresses: list[int]
    chosen: registry.Choice
    backend: str
    call: Callable[..., Any]

    def run(self, *arguments: Any, written: Sequence[Tensor]) -> Any:
        """Run the op; autograd notices if a backward pass still needs the old values of what it writes."""
        result = self.call(*arguments)
        registry.ran(self.backend)
        torch.autograd.graph.increment_version(written)
        return result


@dataclass
class Counting:
    """What it takes to count the signs of activations with the layouts of an earlier call, wherever they lie.

    Attributes:
        same: as in `Repeat`, of the activations and their counts.
        bytes: of each of these, from the first to past the last.
        addresses: of each, where none of them overlap.
        chosen, backend: as in `Repeat`.
        order: activations that have entries, the largest first.
        call: counts these.
    """

    same: Callable[..., bool]
    bytes: list[int]
    addresses: list[int]
    chosen: registry.Choice
    backend: str
    order: list[int]
    call: Callable[[Sequence[Tensor], Sequence[Tensor]], None]


_kept: dict[Hashable, Repeat | None] = {}  # None: called once
_counted: dict[Hashable, Counting | None] = {}


def find(op: str, weights: Sequence[Tensor], masks: Sequence[Tensor]) -> Repeat | None:
    """Return what an earlier call with these tensors left; None if there was none, or if a mode of torch sees calls.

    Args:
        op: "apply_mask_", or "masked_topk_" and its scope.
        weights: at least one.
        masks: of the call.
    """
    repeat = _kept.get(_key(op, weights, masks))
    if repeat is None or not _holds(repeat, weights, masks):
        return None
    return repeat if _addresses(weights, masks) == repeat.addresses else None


def keep(op: str, weights: Sequence[Tensor], masks: Sequence[Tensor], *scope: str) -> None:
    """Remember a call that was checked and has run, at its second time: most lists come once."""
    again = registry.again(op.partition(" ")[0])
    if again is None or not _plain(*weights, *masks):
        return
    key = _key(op, weights, masks)
    if _second(_kept, MOST, key):
        addresses, chosen, backend = _addresses(weights, masks), registry.choice(), registry.last_backend()
        call = again(weights, masks, *scope)
        _kept[key] = Repeat(_guards([*weights, *masks]), addresses, chosen, str(backend), call)


def count(xs: Sequence[Tensor], channel_dims: Sequence[Any], uppers: Sequence[Any], outs: Sequence[Tensor]) -> bool:
    """Count signs if an earlier call had these arguments, and activations of these layouts; return whether it did."""
    key = _count_key(xs, channel_dims, uppers, outs)
    counting = None if key is None else _counted.get(key)
    if counting is None or not _holds(counting, xs, outs):
        return False
    addresses = _addresses(xs, outs)
    if addresses != counting.addresses:
        if not _may_lie(addresses, counting, len(xs)):
            return False
        counting.addresses = addresses
    counting.call([xs[index] for index in counting.order], [outs[index] for index in counting.order])
    registry.ran(counting.backend)
    torch.autograd.graph.increment_version([outs[index] for index in counting.order])
    return True


def _may_lie(addresses: list[int], counting: Counting, inputs: int) -> bool:
    """Whether what a call found holds at these addresses: of so many activations, then of their counts."""
    before, sizes = counting.addresses, counting.bytes
    if inputs == 1:  # as a probe counts: the general way takes 3 us more
        x, out = addresses
        return out == before[1] and not (x ^ before[0]) % 16 and (x + sizes[0] <= out or out + sizes[1] <= x)
    if any((one ^ other) % 16 for one, other in zip(addresses, before, strict=True)):
        return False
    spans = [(address, address + size) for address, size in zip(addresses, sizes, strict=True)]
    return addresses[inputs:] == before[inputs:] and not checks.common_memory(spans[:inputs], spans[inputs:])


def keep_count(
    xs: Sequence[Tensor], channel_dims: Sequence[int], uppers: Sequence[float | None], outs: Sequence[Tensor]
) -> None:
    """Remember a call that counted signs; see `keep`."""
    order = sorted((index for index, x in enumerate(xs) if x.numel()), key=lambda index: -xs[index].nbytes)
    again = registry.again("sign_histograms_") if order else None
    if again is None or not _plain(*xs, *outs):
        return
    key = _count_key(xs, channel_dims, uppers, outs)
    if key is not None and _second(_counted, MOST_COUNTED, key):
        sizes = [end - begin for begin, end in map(checks.extent, [*xs, *outs])]
        chosen, backend = registry.choice(), str(registry.last_backend())
        call = again(*([entries[index] for index in order] for entries in (xs, channel_dims, uppers, outs)))
        _counted[key] = Counting(_guards([*xs, *outs]), sizes, _addresses(xs, outs), chosen, backend, order, call)


def clear() -> None:
    """Forget all calls."""
    _kept.clear()
    _counted.clear()


def _holds(kept: Repeat | Counting, one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether tensors are like those of a kept call, would run on its backend, and nothing but us sees the call."""
    if _is_torch_function_mode_enabled() or _len_torch_dispatch_stack() or torch.autograd._profiler_enabled():
        return False
    if not kept.same(*one, *other):
        return False
    return kept.chosen == registry.choice() and not capturing(one[0])


def _plain(*tensors: Tensor) -> bool:
    """Whether calls with these tensors may be kept: not while a graph is captured, and a subclass sees them itself."""
    return TensorGuards is not None and {*map(type, tensors)} <= {Tensor, Parameter} and not capturing(tensors[0])


def _second(kept: dict[Hashable, Any], most: int, key: Hashable) -> bool:
    """Whether this is the second call of its key, or the second since its tensors became others."""
    if kept.get(key, key) is None:
        return True
    while key not in kept and len(kept) >= most:
        kept.pop(next(iter(kept)), None)
    kept[key] = None
    return False


def _guards(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    layouts: dict[str, Any] = {  # every size and stride is to be as it is: none is dynamic
        "dynamic_dims_sizes": [list(tensor.shape) for tensor in tensors],
        "dynamic_dims_strides": [list(tensor.stride()) for tensor in tensors],
    }
    return TensorGuards(*tensors, **layouts).check


def _count_key(
    xs: Sequence[Tensor], channel_dims: Sequence[Any], uppers: Sequence[Any], outs: Sequence[Tensor]
) -> Hashable:
    """Return what is quick to say of a call; None where an argument only equals one that may be given."""
    if {*map(type, channel_dims)} != {int} or not {*map(type, uppers)} <= {float, NoneType}:
        return None
    first = xs[0]
    if not isinstance(first, Tensor) or first.is_nested:  # which has no shape
        return None
    # The shape, too: layouts that come in turn, for the same counts, are kept side by side.
    return len(xs), len(outs), id(outs[0]), first.shape, *channel_dims, *uppers


def _key(op: str, weights: Sequence[Tensor], masks: Sequence[Tensor]) -> Hashable:
    return op, len(weights), len(masks), id(weights[0])


def _addresses(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> list[int]:
    return [*map(torch.Tensor.data_ptr, weights), *map(torch.Tensor.data_ptr, masks)]
