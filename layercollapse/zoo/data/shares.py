"""Which batches, and what of each, one of several processes loads; see `layercollapse.zoo.data.split.Part.share`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Sampler


@dataclass(frozen=True)
class Share(Sampler[list[int]]):
    """The batches of indices that one of several processes loads; see `Part.share`."""

    indices: range
    batch_size: int
    rank: int
    size: int
    shuffled: bool = False

    def __len__(self) -> int:
        whole = len(self.indices) // self.batch_size
        if self.shuffled:
            return whole
        return len(range(self.rank, whole + (len(self.indices) % self.batch_size > 0), self.size))

    def __iter__(self) -> Iterator[list[int]]:
        if not self.shuffled:
            for start in range(self.rank * self.batch_size, len(self.indices), self.size * self.batch_size):
                yield [*self.indices[start : start + self.batch_size]]
            return
        order = torch.randperm(len(self.indices)).split(self.batch_size)
        for batch in order[: len(self)]:
            yield batch[self.rank :: self.size].tolist()


@dataclass(frozen=True)
class Every:
    """Every `size`-th batch of a loader, from a rank on."""

    loader: Iterable[Any]
    rank: int
    size: int

    def __len__(self) -> int:
        return len(range(self.rank, len(self.loader), self.size))  # type: ignore[arg-type]  # `from_loaders` asks for it

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.loader), self.rank, None, self.size)
