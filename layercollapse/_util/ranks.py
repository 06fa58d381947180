"""The processes that train one model together, and the little that they tell each other of it.

Sums and gathers go over the groups of a device mesh one after the other, so that no group has to be made.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from layercollapse._util.sharded import is_sharded
from layercollapse.errors import LayerCollapseError

Value = TypeVar("Value")


class Ranks:
    """Some processes, of which this is one; or this one alone, which then waits for no other.

    All of them call the same methods in the same order.

    Args:
        groups: process groups that this rank is in, one for each dimension of a device mesh; none for this rank alone.
        lead: number of the first of them in the default group.
        device: where tensors are that go from rank to rank.
    """

    def __init__(self, groups: Iterable[Any] = (), lead: int = 0, device: torch.device | str = "cpu") -> None:
        self.groups = tuple(group for group in groups if dist.get_world_size(group) > 1)
        self.lead, self.device = lead, torch.device(device)

    @classmethod
    def of(cls, model: nn.Module, group: Any = None, *, weights: bool = True) -> Ranks:
        """The ranks of a model.

        Args:
            model: where one of its parameters is sharded, it is those of the largest device mesh of any.
            group: a process group to take in place of that; without either, the default group, if there is one.
            weights: whether it is for weights, of which all ranks that hold parts must be among these.

        Raises:
            LayerCollapseError: parameters are sharded over ranks that are not all among these.
        """
        if not dist.is_available() or not dist.is_initialized():
            if group is not None and not isinstance(group, getattr(dist, "ProcessGroup", ())):  # one that has ended
                raise LayerCollapseError(
                    "group: expected one of an initialized torch.distributed, got one where it is not"
                )
            return cls()
        parameters = dict(model.named_parameters(remove_duplicate=False))
        meshes: dict[str, Any] = {name: p.device_mesh for name, p in parameters.items() if is_sharded(p)}
        if group is None and meshes:
            mesh = max(meshes.values(), key=lambda mesh: mesh.size())
            ranks, groups, kind = mesh.mesh.flatten().tolist(), mesh.get_all_groups(), mesh.device_type
        else:
            groups = [dist.group.WORLD if group is None else group]
            ranks = dist.get_process_group_ranks(groups[0])
            kind = next((p.device.type for p in parameters.values()), "cpu")
        for name, own in meshes.items() if weights else ():
            if not set(ranks).issuperset(own.mesh.flatten().tolist()):
                raise LayerCollapseError(
                    f"group: expected all ranks that hold parts of {name!r} {own}, got the ranks {ranks}"
                )
        device = torch.device(kind, torch.get_device_module(kind).current_device()) if kind != "cpu" else "cpu"
        return cls(groups, ranks[0], device)

    @classmethod
    def default(cls, device: torch.device | str = "cpu") -> Ranks:
        """The ranks of the default group, if there is one.

        Args:
            device: where their tensors are.
        """
        if not dist.is_available() or not dist.is_initialized():
            return cls()
        return cls([dist.group.WORLD], 0, device)

    @property
    def alone(self) -> bool:
        """Whether there is no other rank."""
        return not self.groups

    @property
    def size(self) -> int:
        """How many there are."""
        return math.prod(dist.get_world_size(group) for group in self.groups) if self.groups else 1

    @property
    def rank(self) -> int:
        """Which of them this is, from 0 on, in the order of `gather`."""
        rank = 0
        for group in self.groups:
            rank = rank * dist.get_world_size(group) + dist.get_rank(group)
        return rank

    @property
    def first(self) -> bool:
        """Whether this is the first of them."""
        return self.alone or dist.get_rank() == self.lead

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up what all ranks give, in place."""
        return self._reduce(tensor, dist.ReduceOp.SUM)

    def max_(self, tensor: Tensor) -> Tensor:
        """Take the largest of what all ranks give, in place."""
        return self._reduce(tensor, dist.ReduceOp.MAX)

    def _reduce(self, tensor: Tensor, op: Any) -> Tensor:
        if self.groups:
            moved = tensor.to(self.device)
            for group in self.groups:
                dist.all_reduce(moved, op, group)
            if moved is not tensor:
                tensor.copy_(moved)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """What all ranks give, (ranks, *shape), on the CPU; in one order everywhere."""
        gathered = tensor.to(self.device)[None]
        for group in reversed(self.groups):
            parts = [torch.empty_like(gathered) for _ in range(dist.get_world_size(group))]
            dist.all_gather(parts, gathered.contiguous(), group)
            gathered = torch.cat(parts)
        return gathered.cpu()

    def same_(self, tensor: Tensor) -> Tensor:
        """Take what the first rank gives, in place."""
        moved = tensor.to(self.device).contiguous()
        for group in self.groups:
            dist.broadcast(moved, dist.get_process_group_ranks(group)[0], group)
        if self.groups and moved is not tensor:
            tensor.copy_(moved)
        return tensor

    def tell(self, data: bytes) -> bytes:
        """What the first rank says; what the others give does not count."""
        if self.alone:
            return data
        size = self.same_(torch.tensor([len(data)], device="cpu"))
        told = torch.zeros(int(size), dtype=torch.uint8, device="cpu")
        if self.first:
            told = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else told
        return self.same_(told).numpy().tobytes()

    def hear(self, data: bytes) -> list[bytes]:
        """What every rank says, in one order everywhere."""
        if self.alone:
            return [data]
        sizes = self.gather(torch.tensor([len(data)], device="cpu")).flatten().tolist()
        padded = torch.zeros(max(sizes), dtype=torch.uint8, device="cpu")
        if data:
            padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return [row[:size].numpy().tobytes() for row, size in zip(self.gather(padded), sizes, strict=True)]

    def decide(self, value: bool) -> bool:
        """What the first rank says."""
        return bool(self.gather(torch.tensor([value], dtype=torch.uint8, device="cpu"))[0]) if self.groups else value

    def together(self, work: Callable[[], Value]) -> Value:
        """What `work` gives, which calls no other rank; where it fails on one of them, it fails on all.

        Raises:
            LayerCollapseError: as it came here, or else as it came on the first rank that failed.
            Exception: any other, as it came here; a RuntimeError where it came on another rank.
        """
        if self.alone:
            return work()
        error: Exception | None = None
        try:
            result = work()
        except LayerCollapseError as raised:
            error, word = raised, f"!{raised}"
        except Exception as raised:
            error, word = raised, f"?{type(raised).__name__}: {raised}"
        said = self.hear(b"" if error is None else word.encode(errors="replace"))
        if not any(said):
            return result
        if error is not None:
            raise error
        rank = next(rank for rank, text in enumerate(said) if text)
        kind = LayerCollapseError if said[rank].startswith(b"!") else RuntimeError
        raise kind(f"rank {rank}: {said[rank][1:].decode()}")

    def on_first(self, work: Callable[[], Value]) -> Value | None:
        """What `work` gives on the first rank, for which all wait; None on the others.

        Raises:
            LayerCollapseError: as for `together`.
        """
        return self.together(lambda: work() if self.first else None)

    def wait(self) -> None:
        """Wait until all have come here."""
        self.together(lambda: None)

    def check_same(self, what: str, values: Mapping[str, Any], parts: Mapping[str, Any] | None = None) -> None:
        """Raise on all ranks unless what each has of every name is the same; of each, 16 bytes go to all.

        Args:
            what: for the message.
            values: by name, the names in one order everywhere: bytes, or what has a `repr` that says all of it.
            parts: of what each value is, by name: only ranks with the same are compared. None: all are.

        Raises:
            LayerCollapseError: names the first that is not the same, and the rank.
        """
        if self.alone:
            return
        digests = [_digest(list(values)), *map(_digest, values.values())]
        places = [0, *(0 if parts is None else _digest(parts[name]) for name in values)]
        count = self.gather(torch.tensor([len(values)], device="cpu")).flatten().tolist()
        table = torch.tensor([digests, places], device="cpu")  # (2, 1 + names)
        if len(set(count)) > 1:
            raise LayerCollapseError(f"{what}: expected the same number of them on all ranks, got {count}")
        everywhere = self.gather(table)  # (ranks, 2, 1 + names)
        for column, name in enumerate(["their names", *map(str, values)]):
            seen: dict[int, tuple[int, int]] = {}
            for rank, (digest, place) in enumerate(everywhere[:, :, column].tolist()):
                first, other = seen.setdefault(place, (rank, digest))
                if other != digest:
                    raise LayerCollapseError(
                        f"{what}: expected the same on all ranks, got others on rank {rank} than on rank {first} for "
                        f"{name}"
                    )


def _digest(value: Any) -> int:
    """63 bits of a hash."""
    data = value if isinstance(value, bytes | bytearray | memoryview) else repr(value).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1
