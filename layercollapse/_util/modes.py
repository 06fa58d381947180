"""Evaluation mode for a while: modes, weights, buffers and gradients are afterwards bit for bit what they were.

``train`` and ``eval`` may do work: low-rank adapters merge into the weight they adapt and out of it again, blocks fuse
their branches, batch norms stay frozen. To put back the flag alone leaves such a layer half merged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from layercollapse._util.devices import default_device
from layercollapse._util.sharded import settle
from layercollapse._util.tensors import raw_bytes


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block; the model is afterwards what it was, also after an error.

    A model without a module in training mode is not told to evaluate: it does. Nor are modules of exported programs,
    which refuse to be told: their mode is in their graph. Decoders (``config.use_cache`` of transformers) give no
    cache, which is no output of a graph.
    """
    settle(model)  # what FSDP2 has gathered is put back by it alone
    modes = {module: module.training for module in model.modules()}
    switched = any(modes.values())
    attributes = [_Attributes.of(module) for module in modes]
    values = _values(model, every=switched and any(map(_works, modes)))
    caching: list[Any] = [c for m in modes if getattr(c := vars(m).get("config"), "use_cache", None) is True]
    try:
        for config in caching:
            config.use_cache = False
        for module in filter(_refuses, modes):
            vars(module).update(train=_same, eval=_same)  # as any other attribute, these are put back
        if switched:
            model.eval()
        with default_device():
            yield
    finally:
        settle(model)
        try:
            if switched:
                _switch_back(modes)
        finally:
            for module, training in modes.items():
                module.training = training
            for config in caching:
                config.use_cache = True
            for own in attributes:
                own.restore()
            with torch.no_grad():
                for value in values:
                    value.restore()


def same_values(a: Tensor, b: Tensor) -> Tensor:
    """Where two tensors hold the same value, NaN for NaN."""
    return a.eq(b) | (a.isnan() & b.isnan())


def _works(module: nn.Module) -> bool:
    """Whether a module may do more than set flags when its mode changes."""
    return any(
        name in vars(module) or getattr(type(module), name) is not getattr(nn.Module, name)
        for name in ("train", "eval")
    )


def _refuses(module: nn.Module) -> bool:
    """Whether a module comes from an exported program, whose `train` and `eval` raise."""
    return isinstance(module, fx.GraphModule) and "train" in vars(module)


def _same(*arguments: Any) -> None:
    """In place of `train` and `eval` of a module that has no modes."""


def _switch_back(modes: dict[nn.Module, bool]) -> None:
    """Give modules their modes by calls, from the outermost in: a call goes to all that is inside.

    A module inside two others, one of each mode, takes a second round.
    """
    for _ in range(2):
        for module, training in modes.items():
            if module.training != training:
                module.train(training)


@dataclass(frozen=True)
class _Attributes:
    """What a module holds: its attributes, and what is in those of them that are containers (its parameters, hooks)."""

    module: nn.Module
    kind: type[nn.Module]
    own: dict[str, Any]
    inside: list[tuple[Any, Any]]  # container, copy

    @classmethod
    def of(cls, module: nn.Module) -> _Attributes:
        """The attributes of a module now."""
        own = {} if isinstance(module, torch.jit.ScriptModule) else dict(vars(module))
        inside = [(value, value.copy()) for value in own.values() if isinstance(value, dict | list | set)]
        return cls(module, type(module), own, inside)

    def restore(self) -> None:
        """Put them back."""
        if not self.own:
            return
        if type(self.module) is not self.kind:
            self.module.__class__ = self.kind  # as torch.nn.utils.parametrize does
        for container, copied in ((vars(self.module), self.own), *self.inside):
            if _items(container) == _items(copied):
                continue
            container.clear()
            container.extend(copied) if isinstance(container, list) else container.update(copied)


def _items(container: Any) -> list[tuple[Any, int]]:
    """What is in a container, by identity: tensors do not compare."""
    if isinstance(container, dict):
        return [(key, id(value)) for key, value in container.items()]
    return [(None, id(value)) for value in container]


@dataclass(frozen=True)
class _Value:
    """A tensor of a model, and what to put back.

    Attributes:
        tensor: the parameter, buffer or attribute.
        memory: the same memory, for a tensor that is given other memory (``p.data = …``).
        values: a copy.
        requires_grad: of the tensor.
        grad: its gradient.
    """

    tensor: Tensor
    memory: Tensor
    values: Tensor
    requires_grad: bool
    grad: Tensor | None

    @classmethod
    def of(cls, tensor: Tensor) -> _Value:
        """The value of a tensor now."""
        memory = tensor.detach()
        return cls(tensor, memory, memory.clone(), tensor.requires_grad, tensor.grad if tensor.is_leaf else None)

    def restore(self) -> None:
        """Put it back."""
        if _plain(self.tensor) and self.tensor.data_ptr() != self.memory.data_ptr():
            self.tensor.data = self.memory
        if not _same_bits(self.memory, self.values):
            self.memory.copy_(self.values)
        if self.tensor.requires_grad != self.requires_grad:
            self.tensor.requires_grad_(self.requires_grad)
        if self.tensor.is_leaf and self.tensor.grad is not self.grad:
            self.tensor.grad = self.grad


def _values(model: nn.Module, every: bool) -> list[_Value]:
    """The buffers of a model, which a forward pass may count in; or every tensor that its modules hold."""
    held: dict[Tensor, None] = dict.fromkeys(model.buffers())
    if every:
        held |= dict.fromkeys(model.parameters())
        held |= dict.fromkeys(x for module in model.modules() for x in vars(module).values() if isinstance(x, Tensor))
    return [_Value.of(tensor) for tensor in held if not is_lazy(tensor)]


def _plain(tensor: Tensor) -> bool:
    """Whether a tensor is an array in memory, and nothing else."""
    return type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and tensor.layout == torch.strided and not tensor.is_meta


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are known to hold the same bits; -0 is not 0."""
    if a.is_meta:
        return True
    if not _plain(a):
        return False
    if a.is_quantized:
        a, b = a.int_repr(), b.int_repr()
    return torch.equal(raw_bytes(a), raw_bytes(b))
