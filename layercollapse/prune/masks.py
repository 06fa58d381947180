"""Packed keep-bits of a model's weights: what is pruned, and keeping it at zero.

Weights are looked up by name whenever they are used, so a pruner survives `model.to(...)`, a deep copy together
with its model, and wrappers that replace parameters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from layercollapse import ops
from layercollapse.errors import LayerCollapseError


class WeightMasks:
    """One packed mask (`layercollapse.ops.pack_mask`) for each weight, on the weight's device.

    Args:
        model: has the weights.
        names: names of parameters of the model.
        keep_zeros: whether weights that are exactly zero now count as kept; else they count as pruned.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], keep_zeros: bool = False) -> None:
        self.model = model
        self._packed: dict[str, Tensor] = {}  # uint8 (ceil(numel / 8),)
        for name in names:
            weight = model.get_parameter(name).detach()
            self._packed[name] = ops.pack_mask(torch.ones_like(weight, dtype=torch.bool) if keep_zeros else weight != 0)
        self.kept: dict[str, int] = {name: self._count(name) for name in self._packed}  # weights not pruned

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the weights."""
        return tuple(self._packed)

    def numel(self, name: str) -> int:
        """Number of weights, pruned or not."""
        return self.model.get_parameter(name).numel()

    def mask(self, name: str) -> Tensor:
        """Bool tensor of the weight's shape, True where it is kept."""
        weight, packed = self._pair(name)
        return ops.unpack_mask(packed, weight.shape)

    def magnitudes(self) -> dict[str, float]:
        """Sum of |w| over the kept weights of each tensor, in float64.

        Raises:
            LayerCollapseError: a weight, kept or not, is NaN or infinite.
        """
        sums = []
        for name in self._packed:
            weight, packed = self._pair(name)
            magnitude = weight.abs()
            everything = magnitude.sum(dtype=torch.float64)
            magnitude.masked_fill_(~ops.unpack_mask(packed, weight.shape), 0)
            sums.append(torch.stack([magnitude.sum(dtype=torch.float64), everything]).cpu())
        table = torch.stack(sums).tolist() if sums else []
        bad = [name for name, (_, total) in zip(self._packed, table, strict=True) if not total < float("inf")]
        if bad:
            raise LayerCollapseError(f"weights: expected finite numbers, got NaN or infinity in {', '.join(bad)}")
        return {name: kept for name, (kept, _) in zip(self._packed, table, strict=True)}

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
        before = {name: [tensor.clone() for tensor in self._pair(name)] for name, count in counts.items() if count}
        kept = dict(self.kept)
        self._topk(counts)
        for name, count in counts.items():
            self.kept[name] -= count

        def restore() -> None:
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
        for name, packed in self._packed.items():
            try:
                weight = (model or self.model).get_parameter(name)
            except AttributeError:
                if model is None:
                    raise
                continue
            # `data`: a backward pass that has saved a weight need not know that zeros were written over zeros.
            by_device[weight.device].append((weight.data, self._fitting(name, weight, packed)))
        for pairs in by_device.values():
            weights, masks = zip(*pairs, strict=True)
            ops.apply_mask_(weights, masks)

    def revived(self) -> int:
        """How many pruned weights are not zero."""
        pairs = map(self._pair, self._packed)
        return sum(int((weight[~ops.unpack_mask(packed, weight.shape)] != 0).sum()) for weight, packed in pairs)

    def under_one_threshold(self, names: Sequence[str], count: int) -> dict[str, int]:
        """How many of the `count` smallest kept weights of several tensors are in each; changes nothing.

        Works on copies of these tensors, on the device of the first.
        """
        if len(names) == 1 or not count:
            return {**dict.fromkeys(names, 0), names[0]: count}
        pairs = [self._pair(name) for name in names]
        device = pairs[0][0].device
        weights = [weight.clone().to(device) for weight, _ in pairs]
        masks = [packed.clone().to(device) for _, packed in pairs]
        ops.masked_topk_(weights, masks, count, scope="global")
        left = [ops.unpack_mask(mask, w.shape).sum() for mask, w in zip(masks, weights, strict=True)]
        return {name: self.kept[name] - int(kept) for name, kept in zip(names, left, strict=True)}

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the packed masks, uint8, by the weight's name."""
        return {name: packed.clone() for name, packed in self._packed.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over masks of the same weights, and zero what they prune.

        Raises:
            LayerCollapseError: unknown or missing weights, or masks of the wrong type or size; nothing has changed.
        """
        if not isinstance(state, Mapping):
            raise LayerCollapseError(f"state: expected a dict of packed masks by weight, got {type(state).__name__}")
        for problem, names in (("unknown", state.keys() - self._packed.keys()), ("no", self._packed.keys() - state)):
            if names:
                raise LayerCollapseError(
                    f"state: expected masks of the weights {', '.join(self._packed)}; got {problem} "
                    f"{', '.join(sorted(map(str, names)))}"
                )
        loaded = {name: self._checked(name, state[name]) for name in self._packed}
        before, self._packed = self._packed, loaded
        try:
            self.apply()
        except LayerCollapseError:
            self._packed = before
            raise
        self.kept = {name: self._count(name) for name in self._packed}

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

    def _pair(self, name: str) -> tuple[Tensor, Tensor]:
        """A weight without its history, and its packed mask, moved to where the weight has gone."""
        weight = self.model.get_parameter(name).detach()
        packed = self._packed[name] = self._fitting(name, weight, self._packed[name])
        return weight, packed

    @staticmethod
    def _fitting(name: str, weight: Tensor, packed: Tensor) -> Tensor:
        """A packed mask on the device of a weight, after a check of the sizes."""
        if packed.numel() != (weight.numel() + 7) // 8:
            raise LayerCollapseError(
                f"weight {name!r}: expected the size it had when the pruner was built, got {tuple(weight.shape)}"
            )
        return packed.to(weight.device)

    def _count(self, name: str) -> int:
        return int(self.mask(name).sum())

    def _by_device(self, names: Iterable[str]) -> dict[torch.device, list[tuple[str, Tensor, Tensor]]]:
        """Names, weights and masks of each device: an op takes those of one."""
        groups: dict[torch.device, list[tuple[str, Tensor, Tensor]]] = defaultdict(list)
        for name in names:
            weight, packed = self._pair(name)
            groups[weight.device].append((name, weight, packed))
        return groups

    def _topk(self, counts: Mapping[str, int]) -> None:
        """One `masked_topk_` for each device."""
        groups = self._by_device(counts)
        try:
            for group in groups.values():
                names, weights, masks = zip(*group, strict=True)
                ops.masked_topk_(weights, masks, [counts[name] for name in names], scope="layer")
        except LayerCollapseError as error:
            bad = [name for group in groups.values() for name, weight, _ in group if bool(weight.isnan().any())]
            if bad:
                raise LayerCollapseError(f"weights: expected numbers, got NaN in {', '.join(bad)}") from error
            raise
