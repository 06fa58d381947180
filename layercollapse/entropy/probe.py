"""Count the signs of every rectifier's input while a model runs.

    with EntropyProbe(model) as probe:
        for x, _ in loader:
            model(x)
    report = probe.report()

A mode that is active only during the model's own forward pass (`layercollapse.graph.observer`) sees every rectifier
call, as a module, a function, a method, in place or written out (`layercollapse.graph.patterns`), once and before the
value changes; hooks tell it which module's forward makes the call. Where rectifiers are called as modules only, hooks
on these see all passes after the first (`layercollapse.graph.replay`). Only counts are stored.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from layercollapse._util.ranks import Ranks
from layercollapse.entropy.layer import AVERAGES, STATES, ZEROS, LayerEntropy
from layercollapse.entropy.report import EntropyReport
from layercollapse.errors import LayerCollapseError
from layercollapse.graph import rectifiers
from layercollapse.graph.observer import ForwardObserver
from layercollapse.graph.watch import RectifierCall, Signs, group_of
from layercollapse.ops.patterns import SignPatterns

__all__ = ["AVERAGES", "STATES", "ZEROS", "EntropyProbe", "EntropyReport", "LayerEntropy"]


class EntropyProbe(ForwardObserver):
    """Context manager that counts the signs of all rectifier inputs of a model.

    Works in training and evaluation mode, under autocast, `no_grad` and `inference_mode`, and with a model inside
    DataParallel, DistributedDataParallel or `torch.compile` (whose compiled code is bypassed meanwhile). The
    model's results do not change. Calls outside the model's forward pass, and activation checkpoints that are
    computed again in the backward pass, are not counted; a forward pass that raises counts nothing.
    The model's modules, hooks and code should stay as they are inside the `with`: what the first pass has shown of them
    is not looked at again.

    Args:
        model: the model to watch; call it as ``model(x)``, not as ``model.forward(x)``.
        patterns: whether to count the joint sign patterns of every site, too (`layercollapse.ops.sign_patterns`, up to
            65,536 of them exactly): a second read of each activation, and a sort of 8 bytes for each of its rows.
        group: the process group of the processes that count together: `report` adds up what all have counted, and all
            call it. None: those over which the model is sharded, those of its DistributedDataParallel, or the default
            group of torch.distributed, if there is one. ``dist.new_subgroups(1)[0]``: this process by itself.

    Raises:
        LayerCollapseError: the model has scripted parts, which cannot be watched.
    """

    def __init__(self, model: nn.Module, *, patterns: bool = False, group: Any = None) -> None:
        if not isinstance(patterns, bool):
            raise LayerCollapseError(f"patterns: expected True or False, got {patterns!r}")
        super().__init__(model, patterns=patterns)
        self._group = group_of(model) if group is None else group
        self._forwards = 0
        self._sites: dict[str, _Site] = {}
        self._lock = threading.Lock()  # torch's DataParallel runs replicas in threads

    def keep(self, mask: Tensor) -> None:
        """Say which positions of the next forward pass are data; the others (padding) are not counted.

        Without it, a 2-D `attention_mask` argument of the model is used, where it fits a site's tensor.

        Args:
            mask: bool (N, T), True for data. It applies to sites (N, T, C), (N, C, T) and (N·T, C); sites (N, C)
                count every sample.

        Raises:
            LayerCollapseError: the mask is not boolean, not 2-D, or keeps nothing.
        """
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim != 2:
            got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise LayerCollapseError(f"mask: expected a bool tensor (N, T), got {got}")
        if not bool(mask.any()):
            raise LayerCollapseError(f"mask: expected at least one position to keep, got none of {mask.numel()}")
        self._pending = mask.detach().clone()

    def report(self, zeros: str = "ignore", average: str = "all") -> EntropyReport:
        """The entropies over everything counted since the start or the last `reset`.

        Args:
            zeros: how exact zeros count: ``"ignore"``, ``"off"`` or ``"on"``; see `LayerEntropy`.
            average: ``"all"`` neurons of a layer or the ``"active"`` ones (entropy > 0).

        Raises:
            LayerCollapseError: no forward pass was seen, the model called no rectifier, or activations are NaN.
        """
        ranks = Ranks.of(self.model, self._group, weights=False)
        ranks.together(self._check)
        ranks.check_same("sites", self.calls())
        with torch.inference_mode(False):
            counts = _gathered([site.counts for site in self._sites.values()])
            patterns = [site.all_patterns() for site in self._sites.values()]
            if not ranks.alone:
                flat = ranks.sum_(torch.cat([table.flatten() for table in counts]))
                parts = flat.split([table.numel() for table in counts])
                counts = [part.view(table.shape) for part, table in zip(parts, counts, strict=True)]
                patterns = [
                    state and reduce(SignPatterns.merge, map(SignPatterns.from_tensor, ranks.gather(state.to_tensor())))
                    for state in patterns
                ]
        bad = [name for name, table in zip(self._sites, counts, strict=True) if bool((table[:, 3] > 0).any())]
        if bad:
            raise LayerCollapseError(f"activations: expected numbers, got NaN at {', '.join(bad)}")
        return EntropyReport(
            [
                LayerEntropy(name, site.call.kind, table, zeros, average, state)
                for (name, site), table, state in zip(self._sites.items(), counts, patterns, strict=True)
            ]
        )

    def _check(self) -> None:
        """Raise if there is nothing to report."""
        if not self._forwards:
            raise LayerCollapseError(
                "probe: expected at least one forward pass of the model inside the `with`, got none: is the loader "
                "empty, or was `model.forward(x)` called instead of `model(x)`?"
            )
        if not self._sites:
            raise LayerCollapseError(
                f"model: expected rectifiers ({', '.join(rectifiers.BY_KIND)}; also as a clamp, maximum, torch.where "
                "or mask from the number 0, or written out of functions of one tensor and numbers), got none called "
                f"by {type(self.model).__name__}"
            )

    def calls(self) -> dict[str, RectifierCall]:
        """What was called at every site so far, in the order in which they were first seen."""
        return {name: site.call for name, site in self._sites.items()}

    def reset(self) -> None:
        """Forget everything counted, and a mask that waits for the next forward pass."""
        self._sites, self._forwards, self._pending = {}, 0, None

    def _commit(self, seen: Mapping[str, tuple[RectifierCall, Signs]]) -> None:
        with self._lock:
            for name, (call, _) in seen.items():
                known = self._sites[name].call if name in self._sites else call
                if call is not known and call != known:
                    raise LayerCollapseError(f"site {name!r}: expected {known} as before, got {call}")
            totals, counts = [], []
            for name, (call, signs) in seen.items():
                site = self._sites.get(name)
                if site is None:
                    site = self._sites[name] = _Site(call, {}, {})
                total = site.total(signs)
                if total is not None:
                    totals.append(total)
                    counts.append(signs.counts)
            if totals:
                torch._foreach_add_(totals, counts)  # one launch on a GPU
            self._forwards += 1


@dataclass(frozen=True)
class _Site:
    call: RectifierCall
    counts: dict[torch.device, Tensor]  # int64 (C, 4 or 5), one for each device that ran the site
    patterns: dict[torch.device, SignPatterns]

    def total(self, signs: Signs) -> Tensor | None:
        """What the counts are still to be added to; None if they were the first. The hashes are added at once."""
        device = signs.counts.device
        total = self.counts.get(device)
        if total is None:
            with torch.inference_mode(False):
                self.counts[device] = signs.counts.clone()
        if signs.hashes is not None:
            state = self.patterns.get(device, SignPatterns.empty(self.call.channels, device=device))
            with torch.inference_mode(False):
                self.patterns[device] = state.add(signs.hashes)
        return total

    def all_patterns(self) -> SignPatterns | None:
        """The patterns of all devices, on the CPU."""
        states = [state.to("cpu") for state in self.patterns.values()]
        return reduce(SignPatterns.merge, states) if states else None


def _gathered(sites: list[dict[torch.device, Tensor]]) -> list[Tensor]:
    """The counts of every site summed over devices, on the CPU; one transfer for each device."""
    totals = [torch.zeros(next(iter(site.values())).shape, dtype=torch.int64, device="cpu") for site in sites]
    for device in {device for site in sites for device in site}:
        owned = [(total, site[device]) for total, site in zip(totals, sites, strict=True) if device in site]
        flat = torch.cat([counts.flatten() for _, counts in owned]).cpu()
        for (total, _), part in zip(owned, flat.split([counts.numel() for _, counts in owned]), strict=True):
            total.add_(part.view(total.shape))
    return totals
