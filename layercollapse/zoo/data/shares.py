"""Which batches, and what of each, one of several processes loads; see `layercollapse.zoo.data.split.Part.share`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler


@dataclass(frozen=True)
class Places:
    """The places of samples in the batches that one of several processes has; see `Part.share`.

    In order they are slices; shuffled, int64 (n,) on a device, drawn from torch's global generator for each pass.
    """

    samples: int
    batch_size: int
    rank: int
    size: int
    shuffled: bool = False
    device: torch.device | str = "cpu"

    def __len__(self) -> int:
        if self.shuffled:
            return self.samples // self.batch_size
        return len(range(self.rank, -(-self.samples // self.batch_size), self.size))

    def __iter__(self) -> Iterator[slice | Tensor]:
        if self.shuffled:
            order = torch.randperm(self.samples).to(self.device).split(self.batch_size)
            yield from (batch[self.rank :: self.size] for batch in order[: len(self)])
            return
        for start in range(self.rank * self.batch_size, self.samples, self.size * self.batch_size):
            yield slice(start, min(start + self.batch_size, self.samples))


@dataclass(frozen=True)
class Share(Sampler[list[int]]):
    """The same as lists, for a DataLoader."""

    places: Places

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.places:
            yield [*range(batch.start, batch.stop)] if isinstance(batch, slice) else batch.tolist()


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
