"""Parameters that several processes hold a part of each: DTensors, also those that FSDP2 (`fully_shard`) makes.

Nothing here imports torch.distributed: where a program has not, there are none of these.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn


def is_sharded(value: object) -> TypeGuard[Any]:
    """Whether a tensor is a DTensor."""
    kind = _of("torch.distributed.tensor", "DTensor")
    return kind is not None and isinstance(value, kind)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of a DTensor, which its ranks ask for together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """What this rank holds: a tensor itself, or its part of a DTensor, in the same memory."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor


def local_like(tensor: Tensor, part: Tensor) -> Tensor:
    """A DTensor that is sharded as another one, from what this rank holds of it; of a plain one, the part itself."""
    if not is_sharded(tensor):
        return part
    kind: Any = type(tensor.detach())
    return kind.from_local(
        part,
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def reshard(model: nn.Module) -> None:
    """Let FSDP2 put the sharded parameters back that a forward pass has left gathered.

    A gathered parameter is a copy: what is written to it is lost, and what is written to the sharded one is not in it.
    """
    kind = _of("torch.distributed.fsdp", "FSDPModule")
    if kind is not None:
        for module in model.modules():
            if isinstance(module, kind):
                module.reshard()  # type: ignore[operator]


def settle(model: nn.Module) -> None:
    """Do as `reshard`, also after a forward pass that an error has ended, which FSDP2 takes to be still running.

    It shards its parameters for a state dict whatever it does, which takes longer.
    """
    if any(plain_type(module) is not type(module) for module in model.modules()):
        reshard(model)
        model.state_dict()


def plain_type(module: nn.Module) -> type[nn.Module]:
    """The class of a module, the one it had before `fully_shard` gave it one of its own."""
    kind = _of("torch.distributed.fsdp", "FSDPModule")
    if kind is None or not isinstance(module, kind):
        return type(module)
    bases = type(module).__mro__
    return bases[bases.index(kind) + 1]


def flattened(model: nn.Module) -> str | None:
    """Path of the first module whose parameters FullyShardedDataParallel has made one, ``the root`` for the model."""
    kind = _of("torch.distributed.fsdp", "FullyShardedDataParallel")
    paths = (path for path, module in model.named_modules() if kind is not None and isinstance(module, kind))
    path = next(paths, None)
    return path if path is None else path or "the root"


def hollow(tensor: Tensor) -> Tensor:
    """A parameter of the shape, type and device of a DTensor, without memory: to trace with, not to compute with.

    A plain tensor is given back itself.
    """
    if not is_sharded(tensor):
        return tensor
    values = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    values.untyped_storage().resize_(0)
    return nn.Parameter(values, tensor.requires_grad)


@contextmanager
def plain(model: nn.Module, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The block with a model of ordinary tensors: no DTensors, and nothing that torch.distributed hooks on modules.

    Args:
        model: afterwards as it was.
        replace: what stands for a parameter or buffer, or this itself; called once for each, the parameters first.
    """
    settle(model)
    made: dict[int, Tensor] = {}
    changed: list[tuple[dict, dict]] = []  # container, copy
    kinds = [(module, type(module)) for module in model.modules() if plain_type(module) is not type(module)]
    modules = list(model.modules())
    containers: list[dict] = [m._parameters for m in modules] + [m._buffers for m in modules]
    try:
        for container in containers:
            own = {name: value for name, value in container.items() if value is not None}
            for value in own.values():
                if id(value) not in made:
                    made[id(value)] = replace(value)
            new = {name: made[id(value)] for name, value in own.items() if made[id(value)] is not value}
            if new:
                changed.append((container, dict(container)))
                container.update(new)
        for module in modules:
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                if any(map(_distributed, hooks.values())):
                    changed.append((hooks, dict(hooks)))
                    for key in [key for key, hook in hooks.items() if _distributed(hook)]:
                        del hooks[key]
        for module, _ in kinds:
            module.__class__ = plain_type(module)
        yield
    finally:
        for module, kind in kinds:
            module.__class__ = kind
        for container, before in changed:
            container.clear()
            container.update(before)


def gathers_before(module: nn.Module, hook: Any) -> bool:
    """Whether `fully_shard` gathers a module's parameters before one of the module's forward pre-hooks is called."""
    if plain_type(module) is type(module):
        return False
    hooks = list(module._forward_pre_hooks.values())
    return any(map(_distributed, hooks[: hooks.index(hook)] if hook in hooks else hooks))


def _distributed(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed.")


def _of(module: str, name: str) -> type | None:
    return getattr(sys.modules.get(module), name, None)
