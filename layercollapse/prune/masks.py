"""Packed keep-bits of a model's weights: what is pruned, and keeping it at zero.

Weights are looked up by name whenever they are used, so a pruner survives `model.to(...)`, a deep copy together
with its model, and wrappers that replace parameters. Of a weight that is sharded over several processes (a DTensor)
each has the bits of its own part.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from layercollapse import ops
from layercollapse._util.ranks import Ranks
from layercollapse._util.sharded import is_sharded, local, local_like, reshard, settle
from layercollapse.errors import LayerCollapseError
from layercollapse.prune import shards
from layercollapse.prune.magnitudes import magnitudes
from layercollapse.prune.shards import Held, Part


class WeightMasks:
    """One packed mask (`layercollapse.ops.pack_mask`) for each weight, on the weight's device.

    Args:
        model: has the weights.
        names: names of parameters of the model.
        keep_zeros: whether weights that are exactly zero now count as kept; else they count as pruned.
        group: the process group of the ranks that have the model; see `Ranks.of`.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], keep_zeros: bool = False, group: Any = None) -> None:
        self.model, self._group = model, group
        self._packed: dict[str, Tensor] = {}  # uint8 (ceil(numel / 8),), of the part of the weight that is here
        self._parts: dict[str, Part] = {}
        settle(model)
        for name in names:
            weight = model.get_parameter(name).detach()
            self._parts[name], here = shards.part_of(name, weight), local(weight)
            self._packed[name] = ops.pack_mask(torch.ones_like(here, dtype=torch.bool) if keep_zeros else here != 0)
        self.kept: dict[str, int] = self._count()  # weights not pruned, of all ranks

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the weights."""
        return tuple(self._packed)

    def numel(self, name: str) -> int:
        """Number of weights, pruned or not."""
        return self.model.get_parameter(name).numel()

    def ranks(self) -> Ranks:
        """The processes that have the model, as it is now."""
        settle(self.model)
        return Ranks.of(self.model, self._group)

    def mask(self, name: str) -> Tensor:
        """Bool tensor of the weight's shape, True where it is kept; sharded as the weight is."""
        settle(self.model)
        weight, packed = self._pair(name)
        return local_like(self.model.get_parameter(name), ops.unpack_mask(packed, weight.shape))

    def magnitudes(self) -> dict[str, float]:
        """Sum of |w| over the kept weights of each tensor, the same for any number of ranks.

        Raises:
            LayerCollapseError: a weight, kept or not, is NaN or infinite.
        """
        ranks = self.ranks()
        return magnitudes([self._held(name, ranks) for name in self._packed], ranks)

    def clear(self, counts: Mapping[str, int]) -> Callable[[], None]:
        """Prune the given number of smallest weights of each tensor, and zero every pruned weight.

        Returns:
            A function that takes it back; it holds copies of the tensors that lose weights.

        Raises:
            LayerCollapseError: a count is above what is kept, or a weight is NaN; nothing has changed.
        """
        for name, count in counts.items():
            if not 0 <= count <= self.kept[name]:
                raise LayerCollapseError(f"count of {name!r}: expected 0 to {self.kept[name]}, got {count}")
        ranks = self.ranks()
        before = {name: [tensor.clone() for tensor in self._pair(name)] for name, count in counts.items() if count}
        kept = dict(self.kept)
        self._topk(counts, ranks)
        for name, count in counts.items():
            self.kept[name] -= count

        def restore() -> None:
            reshard(self.model)
            for name, copies in before.items():
                for tensor, copy in zip(self._pair(name), copies, strict=True):
                    tensor.copy_(copy)
            self.kept = kept

        return restore

    def apply(self, model: nn.Module | None = None) -> None:
        """Set every pruned weight to zero again; one that is kept stays as it is, also a NaN.

        Args:
            model: a copy of the model, by default the model itself. What is no parameter in it at the moment, as inside
                `torch.func.functional_call`, is left alone.

        Raises:
            LayerCollapseError: a weight of the copy has another size.
        """
        by_device: dict[torch.device, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        reshard(self.model if model is None else model)
        for name in self._packed:
            try:
                weight = self._weight(name, model)
            except AttributeError:
                if model is None:
                    raise
                continue
            # `data`: a backward pass that has saved a weight need not know that zeros were written over zeros.
            packed = self._fitting(name, weight)
            by_device[packed.device].append((local(weight.data), packed))
        for pairs in by_device.values():
            weights, masks = zip(*pairs, strict=True)
            ops.apply_mask_(weights, masks)

    def revived(self) -> int:
        """How many pruned weights are not zero, of all ranks, which count together where weights are sharded."""
        ranks = self.ranks() if self._sharded() else Ranks()
        held = (self._held(name, ranks) for name in self._packed)
        counts = [int((one.weight[~one.kept()] != 0).sum()) for one in held if one.counts]
        return int(ranks.sum_(torch.tensor(sum(counts), device="cpu")))

    def under_one_threshold(self, names: Sequence[str], count: int) -> dict[str, int]:
        """How many of the `count` smallest kept weights of several tensors are in each; changes nothing.

        Counted without a copy, where one is sharded by all ranks together.
        """
        if len(names) == 1 or not count:
            return {**dict.fromkeys(names, 0), names[0]: count}
        settle(self.model)
        ranks = self.ranks() if any(map(self._is_sharded, names)) else Ranks()
        (found,) = shards.thresholds([[self._held(name, ranks) for name in names]], [count], ranks)
        return dict(zip(names, found.lost, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the packed masks, uint8, by the weight's name: of whole weights, on the CPU where one is sharded.

        All ranks of sharded weights ask for them together, and each gets all of them.
        """
        if not self._sharded():
            return {name: packed.clone() for name, packed in self._packed.items()}
        ranks = self.ranks()
        return {name: shards.gathered(self._held(name, ranks), ranks) for name in self._packed}

    def check(self) -> None:
        """Raise on all ranks unless those that hold the same part of a weight have the same mask of it.

        Raises:
            LayerCollapseError: names the first weight whose masks differ.
        """
        ranks = self.ranks()
        if ranks.alone:
            return
        masks = {
            name: packed.cpu().numpy().tobytes() + b"%d" % self.kept[name] for name, packed in self._packed.items()
        }
        parts = {name: (part.start, part.size) for name, part in self._parts.items()}
        ranks.check_same("masks", masks, parts)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over masks of the same weights, and zero what they prune.

        Raises:
            LayerCollapseError: unknown or missing weights, or masks of the wrong type or size; nothing has changed.
        """
        ranks = self.ranks()
        loaded = ranks.together(lambda: self._all_checked(state))
        ranks.check_same("masks in state", {name: packed.cpu().numpy().tobytes() for name, packed in loaded.items()})
        before, self._packed = self._packed, {}
        parts, self._parts = self._parts, {}
        for name, packed in loaded.items():
            weight = self.model.get_parameter(name)
            shape = tuple(weight.shape)
            self._parts[name], self._packed[name] = Part(shape, (0,) * len(shape), shape), packed
        try:
            self.apply()
        except LayerCollapseError:
            self._packed, self._parts = before, parts
            raise
        self.kept = self._count()

    def _all_checked(self, state: object) -> dict[str, Tensor]:
        if not isinstance(state, Mapping):
            raise LayerCollapseError(f"state: expected a dict of packed masks by weight, got {type(state).__name__}")
        for problem, names in (("unknown", state.keys() - self._packed.keys()), ("no", self._packed.keys() - state)):
            if names:
                raise LayerCollapseError(
                    f"state: expected masks of the weights {', '.join(self._packed)}; got {problem} "
                    f"{', '.join(sorted(map(str, names)))}"
                )
        return {name: self._checked(name, state[name]) for name in self._packed}

    def _checked(self, name: str, packed: object) -> Tensor:
        weight = self.model.get_parameter(name)
        numel = weight.numel()
        size = ((numel + 7) // 8,)
        if not isinstance(packed, Tensor) or packed.dtype != torch.uint8 or packed.shape != size:
            got = f"{packed.dtype} {tuple(packed.shape)}" if isinstance(packed, Tensor) else type(packed).__name__
            raise LayerCollapseError(f"mask of {name!r}: expected uint8 {size} for {numel} weights, got {got}")
        if numel % 8 and int(packed[-1]) >> numel % 8:
            raise LayerCollapseError(f"mask of {name!r}: expected no bits beyond its {numel} weights, got some")
        return packed.detach().clone().contiguous().to(weight.device)

    def _weight(self, name: str, model: nn.Module | None = None) -> Tensor:
        model = self.model if model is None else model
        weight = model.get_parameter(name)
        if not is_sharded(weight) and not self._parts[name].whole:  # a forward pass has failed that had gathered it
            settle(model)
            weight = model.get_parameter(name)
        return weight

    def _sharded(self) -> bool:
        """Whether any weight is."""
        settle(self.model)
        return any(map(self._is_sharded, self._packed))

    def _is_sharded(self, name: str) -> bool:
        return is_sharded(self.model.get_parameter(name))

    def _pair(self, name: str) -> tuple[Tensor, Tensor]:
        """What is here of a weight, without its history, and its packed mask, moved to where the weight has gone."""
        weight = self._weight(name).detach()
        self._packed[name] = packed = self._fitting(name, weight)
        self._parts[name] = shards.part_of(name, weight)
        return local(weight), packed

    def _held(self, name: str, ranks: Ranks) -> Held:
        weight, packed = self._pair(name)
        counts = shards.counted(self.model.get_parameter(name), ranks)
        return Held(name, weight, packed, self._parts[name], counts)

    def _fitting(self, name: str, weight: Tensor) -> Tensor:
        """The packed mask of what is here of a weight, on its device, after a check of the sizes."""
        known, part, packed = self._parts[name], shards.part_of(name, weight), self._packed[name]
        if math.prod(part.shape) != math.prod(known.shape):
            raise LayerCollapseError(
                f"weight {name!r}: expected the size it had when the pruner was built, got {part.shape}"
            )
        if known.whole and not part.whole:
            packed = ops.pack_mask(ops.unpack_mask(packed, part.shape)[part.block])
        elif not known.whole and known != part:
            raise LayerCollapseError(
                f"weight {name!r}: expected the part {known.block} of it that this rank had when the pruner was built, "
                f"got {part.block}; a new pruner takes the state of this one for any ranks"
            )
        return packed.to(local(weight).device)

    def _count(self) -> dict[str, int]:
        """The weights that are kept, of all ranks together."""
        ranks = self.ranks() if self._sharded() else Ranks()
        held = (self._held(name, ranks) for name in self._packed)
        counts = torch.tensor(
            [int(one.kept().sum()) if one.counts else 0 for one in held], dtype=torch.int64, device="cpu"
        )
        return dict(zip(self._packed, ranks.sum_(counts).tolist(), strict=True))

    def _by_device(self, names: Iterable[str]) -> dict[torch.device, list[tuple[str, Tensor, Tensor]]]:
        """Names, weights and masks of each device: an op takes those of one."""
        groups: dict[torch.device, list[tuple[str, Tensor, Tensor]]] = defaultdict(list)
        for name in names:
            weight, packed = self._pair(name)
            groups[weight.device].append((name, weight, packed))
        return groups

    def _topk(self, counts: Mapping[str, int], ranks: Ranks) -> None:
        """One `masked_topk_` for each device, and one over all ranks for what is sharded."""
        held = [self._held(name, ranks) for name in counts if self._is_sharded(name)]
        groups = self._by_device(name for name in counts if not self._is_sharded(name))
        try:
            if held:
                shards.clear([[one] for one in held], [counts[one.name] for one in held], ranks)
            for group in groups.values():
                names, weights, masks = zip(*group, strict=True)
                ops.masked_topk_(weights, masks, [counts[name] for name in names], scope="layer")
        except LayerCollapseError as error:
            here = {name: weight for group in groups.values() for name, weight, _ in group}
            here |= {one.name: one.weight for one in held}
            bad = [name for name, weight in here.items() if bool(weight.isnan().any())]
            if bad:
                raise LayerCollapseError(f"weights: expected numbers, got NaN in {', '.join(bad)}") from error
            raise
