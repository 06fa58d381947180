"""Calls with the tensors of an earlier one, as a pruner makes after every step: nothing is checked or planned again.

What an op checks, and how a backend plans it, depends on where tensors lie and on their type, device, shape and
strides. Where all of this is as it was, what that call found holds, whoever owns the memory now. The comparison is the
one that guards what `torch.compile` made, in C++: with the addresses 0.25 us for a weight and its mask, where checks
and plans take 3 us.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from layercollapse.kernels.launch import capturing
from layercollapse.ops import registry

try:
    from torch._C import _is_torch_function_mode_enabled, _len_torch_dispatch_stack
    from torch._C._dynamo.guards import TensorGuards
except ImportError:  # private to torch: without it, every call is checked
    TensorGuards = None  # type: ignore[assignment, misc]

MOST = 16  # calls kept


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


_kept: dict[Hashable, Repeat | None] = {}  # None: called once


def find(op: str, weights: Sequence[Tensor], masks: Sequence[Tensor]) -> Repeat | None:
    """Return what an earlier call with these tensors left; None if there was none, or if a mode of torch sees calls.

    Args:
        op: "apply_mask_", or "masked_topk_" and its scope.
        weights: at least one.
        masks: of the call.
    """
    repeat = _kept.get(_key(op, weights, masks))
    if repeat is None or _is_torch_function_mode_enabled() or _len_torch_dispatch_stack():
        return None
    if not repeat.same(*weights, *masks) or repeat.chosen != registry.choice() or capturing(weights[0]):
        return None
    return repeat if _addresses(weights, masks) == repeat.addresses else None


def keep(op: str, weights: Sequence[Tensor], masks: Sequence[Tensor], *scope: str) -> None:
    """Remember a call that was checked and has run, at its second time: most lists come once."""
    again = registry.again(op.partition(" ")[0])
    if again is None or TensorGuards is None or capturing(weights[0]):
        return
    key = _key(op, weights, masks)
    if _kept.get(key, key) is not None:  # new, or its tensors have become others
        while key not in _kept and len(_kept) >= MOST:
            _kept.pop(next(iter(_kept)), None)
        _kept[key] = None
        return
    tensors = [*weights, *masks]
    layouts: dict[str, Any] = {  # every size and stride is to be as it is: none is dynamic
        "dynamic_dims_sizes": [list(tensor.shape) for tensor in tensors],
        "dynamic_dims_strides": [list(tensor.stride()) for tensor in tensors],
    }
    same = TensorGuards(*tensors, **layouts)
    addresses, chosen, backend = _addresses(weights, masks), registry.choice(), registry.last_backend()
    _kept[key] = Repeat(same.check, addresses, chosen, str(backend), again(weights, masks, *scope))


def clear() -> None:
    """Forget all calls."""
    _kept.clear()


def _key(op: str, weights: Sequence[Tensor], masks: Sequence[Tensor]) -> Hashable:
    return op, len(weights), len(masks), id(weights[0])


def _addresses(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> list[int]:
    return [*map(torch.Tensor.data_ptr, weights), *map(torch.Tensor.data_ptr, masks)]
