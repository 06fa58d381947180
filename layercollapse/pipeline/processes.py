"""What the processes of one run have in common: the weights they begin with, and what the first of them decides."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from layercollapse._util.ranks import Ranks
from layercollapse._util.sharded import is_sharded
from layercollapse._util.tensors import raw_bytes
from layercollapse.errors import LayerCollapseError
from layercollapse.pipeline.states import dumped, loaded


def from_first(ranks: Ranks, make: Callable[[], Any]) -> Any:
    """What the first of several processes makes, which calls no other; on all of them.

    Raises:
        LayerCollapseError: it cannot be made, or is no state as `save` takes it.
    """
    if ranks.alone:
        return make()
    return loaded(ranks.tell(ranks.on_first(lambda: dumped(make())) or b""))


def same_weights(model: nn.Module, ranks: Ranks) -> None:
    """Take the weights and buffers of the first process on all.

    Raises:
        LayerCollapseError: they are sharded.
    """
    tensors = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    if sharded := [name for name, value in tensors.items() if is_sharded(value)]:
        raise LayerCollapseError(
            f"model: expected weights that every process has whole, got sharded ones such as {sharded[0]!r}; "
            "EntropyProbe, Pruner and collapse take those"
        )
    if not ranks.alone:
        ranks.check_same("weights", {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()})
        with torch.no_grad():
            for value in tensors.values():
                whole = value.detach().contiguous().resolve_conj().resolve_neg()
                ranks.same_(raw_bytes(whole))  # gloo has no int16 and no float8
                if any(step == 0 and size > 1 for step, size in zip(value.stride(), value.shape, strict=True)):
                    value.data = whole  # elements that share memory cannot be written to
                elif whole.data_ptr() != value.data_ptr():
                    value.copy_(whole)


@contextmanager
def joined(device: str) -> Iterator[None]:
    """The block, as one of the processes that torchrun has started; elsewhere nothing but the block.

    Args:
        device: ``"cuda"`` gives each process of a machine one of its GPUs, and NCCL; all others talk through gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    _begin("nccl" if cuda else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def _begin(backend: str) -> None:
    """Make the default group of the processes of torchrun.

    Processes that torchrun has started again find the addresses of the dead ones in its store, and may connect to those
    (two of five restarts, torch 2.13): what they write is kept apart by the number of the restart. On several machines
    that number need not be one.
    """
    names = os.environ
    restart = names.get("TORCHELASTIC_RESTART_COUNT")
    if restart is None or names.get("LOCAL_WORLD_SIZE") != names["WORLD_SIZE"]:
        dist.init_process_group(backend)
        return
    store, rank, size = next(rendezvous("env://"))
    dist.init_process_group(backend, store=dist.PrefixStore(f"restart-{restart}", store), rank=rank, world_size=size)
