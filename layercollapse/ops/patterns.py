"""The joint signs of a layer's neurons: how many different patterns there are, and how evenly the data use them.

    patterns = ops.sign_patterns(x)                    # one row of signs for each sample or position
    patterns = ops.sign_patterns(y, state=patterns)    # goes on counting
    patterns.distinct, patterns.entropy, patterns.exact

A rectifier network is affine on the inputs that share one pattern, so the patterns are the linear pieces that a layer
really uses on the data (Montúfar et al. 2014, arXiv 1402.1869; Raghu et al. 2017, arXiv 1606.05336; Hanin & Rolnick
2019, arXiv 1906.00904). A pattern is known by its 64-bit hash (`layercollapse.ops.sign_hashes`). Up to `capacity`
patterns, of the smallest hashes, are counted: a bottom-k sketch (Bar-Yossef et al. 2002, "Counting distinct elements in
a data stream"; Beyer et al. 2007, "On synopses for distinct-value estimation under multiset operations").

A pattern that is among the `capacity` smallest at the end was among them from its first row on, because patterns are
only added to those seen: it was never dropped, and its count is complete. So the state depends neither on the order of
rows nor on how they are cut into calls or processes, and once there are more patterns than `capacity` it is a uniform
sample of them with exact counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from layercollapse._util.tensors import describe
from layercollapse.errors import LayerCollapseError

CAPACITY = 65536
_LEAST = 16  # of a capacity: the error of an estimate is 27 % there
_HEAD = 4  # numbers before the hashes in `to_tensor`


@dataclass(frozen=True, eq=False)
class SignPatterns:
    """Counts of sign patterns; immutable.

    Attributes:
        hashes: int64 (M,) ascending, M ≤ capacity: the smallest hashes seen.
        counts: int64 (M,), how many rows have each.
        rows: rows seen, those of all patterns.
        channels: signs in a row.
        capacity: up to how many patterns everything is exact.
    """

    hashes: Tensor
    counts: Tensor
    rows: int
    channels: int
    capacity: int = CAPACITY

    @classmethod
    def empty(cls, channels: int, *, capacity: int = CAPACITY, device: torch.device | str = "cpu") -> SignPatterns:
        """Return the state before the first row.

        Args:
            channels: signs in a row.
            capacity: up to how many patterns everything is exact: 16 bytes each, at least 16.
            device: of the rows to come.
        """
        for name, value, least in (("channels", channels, 0), ("capacity", capacity, _LEAST)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise LayerCollapseError(f"{name}: expected an int of at least {least}, got {value!r}")
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return cls(none, none, 0, channels, capacity)

    def add(self, hashes: Tensor) -> SignPatterns:
        """Return the state after more rows.

        Args:
            hashes: int64, any shape, on the state's device: of rows of as many channels.
        """
        if not isinstance(hashes, Tensor) or hashes.dtype != torch.int64 or hashes.device != self.hashes.device:
            raise LayerCollapseError(
                f"hashes: expected an int64 tensor on {self.hashes.device}, got {describe(hashes)}"
            )
        flat = hashes.reshape(-1)
        rows = self.rows + flat.numel()
        if len(self.hashes) == self.capacity:
            flat = flat[flat <= self.hashes[-1]]  # most rows, when there are many more patterns
        distinct, counts = torch.unique(flat, return_counts=True)
        return self._with(torch.cat([self.hashes, distinct]), torch.cat([self.counts, counts]), rows, self.capacity)

    def merge(self, other: SignPatterns) -> SignPatterns:
        """Return the state after the rows of both, in any order; its capacity is the smaller one.

        Raises:
            LayerCollapseError: the other's rows have another number of channels.
        """
        if not isinstance(other, SignPatterns) or other.channels != self.channels:
            got = f"one of {other.channels}" if isinstance(other, SignPatterns) else type(other).__name__
            raise LayerCollapseError(f"other: expected patterns of {self.channels} channels, got {got}")
        twin = other.to(self.hashes.device)
        return self._with(
            torch.cat([self.hashes, twin.hashes]),
            torch.cat([self.counts, twin.counts]),
            self.rows + other.rows,
            min(self.capacity, other.capacity),
        )

    def to(self, device: torch.device | str) -> SignPatterns:
        """Return the same state on another device."""
        return replace(self, hashes=self.hashes.to(device), counts=self.counts.to(device))

    def to_tensor(self) -> Tensor:
        """Return the state as one tensor, to be saved or gathered from other processes; `from_tensor` reads it.

        Its size depends on the capacity alone: int64 (4 + 2 · capacity,), with rows, channels, capacity, M, the hashes
        and the counts, both with zeros behind.
        """
        result = self.hashes.new_zeros(_HEAD + 2 * self.capacity)
        kept = len(self.hashes)
        result[:_HEAD] = result.new_tensor([self.rows, self.channels, self.capacity, kept])
        result[_HEAD : _HEAD + kept] = self.hashes
        result[_HEAD + self.capacity : _HEAD + self.capacity + kept] = self.counts
        return result

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> SignPatterns:
        """Read what `to_tensor` gave.

        Raises:
            LayerCollapseError: it is something else.
        """
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64 or tensor.dim() != 1 or len(tensor) < _HEAD:
            raise LayerCollapseError(f"tensor: expected what to_tensor() gave, got {describe(tensor)}")
        rows, channels, capacity, kept = tensor[:_HEAD].tolist()
        if capacity < _LEAST or not 0 <= kept <= capacity or len(tensor) != _HEAD + 2 * capacity:
            raise LayerCollapseError(f"tensor: expected what to_tensor() gave, got {describe(tensor)}")
        hashes, counts = tensor[_HEAD:].split(capacity)
        return cls.of(hashes[:kept].clone(), counts[:kept].clone(), rows, channels, capacity)

    @classmethod
    def of(cls, hashes: Tensor, counts: Tensor, rows: int, channels: int, capacity: int) -> SignPatterns:
        """Return a state of parts that come from outside, or say what is wrong with them."""
        empty = cls.empty(channels, capacity=capacity)
        shaped = hashes.dtype == counts.dtype == torch.int64 and hashes.shape == counts.shape and hashes.dim() == 1
        if not shaped or len(hashes) > capacity or not bool((hashes[1:] > hashes[:-1]).all()):
            raise LayerCollapseError(
                f"hashes, counts: expected ascending int64 hashes, {capacity} at most, and a count of each, got "
                f"{describe(hashes)} and {describe(counts)}"
            )
        inside = sum(counts.tolist())  # Python's ints: a sum of int64 that wraps would be taken for the rows
        if bool((counts < 1).any()) or inside > rows or (inside < rows and len(hashes) < capacity):
            raise LayerCollapseError(f"rows: expected those of the counts, {inside}, got {rows}")
        return replace(empty, hashes=hashes, counts=counts, rows=rows)

    @property
    def exact(self) -> bool:
        """Whether no pattern was ever left out: all figures are then exact, but for collisions of hashes."""
        return int(self.counts.sum()) == self.rows

    @property
    def distinct(self) -> int:
        """Number of different patterns: counted where `exact`, else (M − 1) / u rounded, unbiased.

        u in (0, 1] is where the largest hash kept lies in the range of all hashes.
        """
        kept = len(self.hashes)
        return kept if self.exact else round((kept - 1) / self._reach)

    @property
    def error(self) -> float:
        """Relative standard error of `distinct`: 0 where `exact`, else 1 / √(M − 2): 0.4 % of 65,536."""
        return 0.0 if self.exact else 1 / math.sqrt(len(self.hashes) - 2)

    @property
    def entropy(self) -> float:
        """Entropy of the pattern of a row, in bits: H = log₂n − Σ c·log₂c / n over the patterns' counts c, n rows.

        Exact where `exact`; else Σ c·log₂c / Σ c over the uniform sample of patterns stands for the same of all (the
        ratio estimator, as the sum of all counts is known), inside `entropy_bounds`. A few patterns that have many of
        the rows and are not in the sample make it too large, by what the bounds allow: then they are far apart.
        """
        inside = int(self.counts.sum())
        if not inside:
            return 0.0
        return max(self._bits(self._sum(self.counts) * (self.rows / inside)), self.entropy_bounds[0])

    @property
    def entropy_error(self) -> float:
        """Standard error of `entropy` in bits, from the spread in the sample: 0 where `exact`.

        √((1 − u) · Σ (c·log₂c − c·R)²) / Σ c over the counts in the sample, R = Σ c·log₂c / Σ c.
        """
        if self.exact:
            return 0.0
        counts = self.counts.tolist()
        mean = self._sum(self.counts) / sum(counts)
        squares = math.fsum((count * (math.log2(count) - mean)) ** 2 for count in counts)
        return math.sqrt((1 - self._reach) * squares) / sum(counts)

    @property
    def entropy_bounds(self) -> tuple[float, float]:
        """What the entropy cannot be outside of, in bits: all rows that are not in the sample share a pattern, or none.

        Both are the entropy itself where `exact`.
        """
        known = self._sum(self.counts)
        left = self.rows - int(self.counts.sum())
        return self._bits(known + (left * math.log2(left) if left else 0.0)), self._bits(known)

    @property
    def _reach(self) -> float:
        """Share of all 64-bit hashes that are at most the largest one kept."""
        return (int(self.hashes[-1]) + 2**63 + 1) / 2**64

    def _bits(self, total: float) -> float:
        return max(0.0, math.log2(self.rows) - total / self.rows) if self.rows else 0.0

    def _sum(self, counts: Tensor) -> float:
        """Σ c·log₂c, rounded once: the order of the counts and the machine's vectors cannot show."""
        return math.fsum(count * math.log2(count) for count in counts.tolist())

    def _with(self, hashes: Tensor, counts: Tensor, rows: int, capacity: int) -> SignPatterns:
        distinct, places = torch.unique(hashes, return_inverse=True)
        totals = torch.zeros_like(distinct).scatter_add_(0, places, counts)
        return SignPatterns(distinct[:capacity].clone(), totals[:capacity].clone(), rows, self.channels, capacity)
