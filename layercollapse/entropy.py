"""Count the signs of every rectifier's input while a model runs.

    with EntropyProbe(model) as probe:
        for x, _ in loader:
            model(x)
    report = probe.report()

A mode that is active only during the model's own forward pass (`layercollapse.watch`) sees every rectifier call,
as a module, a function, a method, in place or written out (`layercollapse.patterns`), once and before the value
changes; hooks tell it which module's forward makes the call. Only counts are stored.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from layercollapse import rectifiers
from layercollapse.counts import AVERAGES, STATES, ZEROS, EntropyReport, LayerEntropy
from layercollapse.errors import LayerCollapseError
from layercollapse.export import scripted
from layercollapse.sign_patterns import SignPatterns
from layercollapse.watch import ROOT, ForwardWatch, MaskArgument, RectifierCall, Signs, site_path, unwrapped

__all__ = ["AVERAGES", "STATES", "ZEROS", "EntropyProbe", "EntropyReport", "LayerEntropy"]


class EntropyProbe:
    """Context manager that counts the signs of all rectifier inputs of a model.

    Works in training and evaluation mode, under autocast, `no_grad` and `inference_mode`, and with a model inside
    DataParallel, DistributedDataParallel or `torch.compile` (whose compiled code is bypassed meanwhile). The
    model's results do not change. Calls outside the model's forward pass, and activation checkpoints that are
    computed again in the backward pass, are not counted; a forward pass that raises counts nothing.

    Args:
        model: the model to watch; call it as ``model(x)``, not as ``model.forward(x)``.
        patterns: whether to count the joint sign patterns of every site, too (`layercollapse.ops.sign_patterns`, up to
            65,536 of them exactly): a second read of each activation, and a sort of 8 bytes for each of its rows.

    Raises:
        LayerCollapseError: the model has scripted parts, which cannot be watched.
    """

    def __init__(self, model: nn.Module, *, patterns: bool = False) -> None:
        if not isinstance(patterns, bool):
            raise LayerCollapseError(f"patterns: expected True or False, got {patterns!r}")
        self._patterns = patterns
        self.model = unwrapped(model)
        if (path := scripted(self.model)) is not None:
            raise LayerCollapseError(
                f"model: expected modules in Python, got a scripted one at {path}, whose calls cannot be seen"
            )
        self._masks = MaskArgument(self.model)
        self._pending: Tensor | None = None
        self._forwards = 0
        self._sites: dict[str, _Site] = {}
        self._lock = threading.Lock()  # torch's DataParallel runs replicas in threads
        self._local = threading.local()
        self._active: ExitStack | None = None

    def __enter__(self) -> EntropyProbe:
        if self._active is not None:
            raise LayerCollapseError("probe: expected to be entered once at a time, got a nested `with` on it")
        with ExitStack() as stack:
            if "torch._dynamo" in sys.modules:
                # Compiled code would run without the hooks and count nothing.
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for path, module in self.model.named_modules():
                enter, leave = _Hook(site_path(path), self._enter), _Hook(site_path(path), self._leave)
                for handle in (
                    module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True),
                    module.register_forward_hook(leave, always_call=True),
                ):
                    stack.callback(handle.remove)
            self._active = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._abandon()
        if self._active is not None:
            self._active.close()
            self._active = None

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
            came = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise LayerCollapseError(f"mask: expected a bool tensor (N, T), got {came}")
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
        with torch.inference_mode(False):
            counts = _gathered([site.counts for site in self._sites.values()])
        bad = [name for name, table in zip(self._sites, counts, strict=True) if bool((table[:, 3] > 0).any())]
        if bad:
            raise LayerCollapseError(f"activations: expected numbers, got NaN at {', '.join(bad)}")
        return EntropyReport(
            [
                LayerEntropy(name, site.call.kind, table, zeros, average, site.all_patterns())
                for (name, site), table in zip(self._sites.items(), counts, strict=True)
            ]
        )

    def calls(self) -> dict[str, RectifierCall]:
        """What was called at every site so far, in the order in which they were first seen."""
        return {name: site.call for name, site in self._sites.items()}

    def reset(self) -> None:
        """Forget everything counted, and a mask that waits for the next forward pass."""
        self._sites, self._forwards, self._pending = {}, 0, None

    def _enter(self, path: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if path == ROOT:
            # A backward pass that calls the whole model again is recomputing a checkpoint.
            if torch._C._current_graph_task_id() != -1:
                return
            self._abandon()
            explicit, self._pending = self._pending, None
            found = self._masks(args, kwargs) if explicit is None else None
            self._local.forward = forward = ForwardWatch(explicit, found, self._patterns)
            forward.__enter__()
        current = getattr(self._local, "forward", None)
        if current is not None:
            current.path.append(path)

    def _leave(self, path: str, module: nn.Module, args: tuple, output: Any) -> None:
        forward = getattr(self._local, "forward", None)
        if forward is None:
            return
        if forward.path and forward.path[-1] == path:
            forward.path.pop()
        if path == ROOT and not forward.path:
            self._abandon()
            if not forward.raising():
                self._commit(forward.seen)

    def _abandon(self) -> None:
        """Take this thread's mode down; an interrupt (Ctrl-C) skips even hooks that are always called."""
        forward = getattr(self._local, "forward", None)
        self._local.forward = None
        if forward is not None:
            forward.__exit__(None, None, None)

    def _commit(self, seen: dict[str, tuple[RectifierCall, Signs]]) -> None:
        with self._lock:
            for name, (call, _) in seen.items():
                known = self._sites[name].call if name in self._sites else call
                if call != known:
                    raise LayerCollapseError(f"site {name!r}: expected {known} as before, got {call}")
            for name, (call, signs) in seen.items():
                self._sites.setdefault(name, _Site(call, {}, {})).add(signs)
            self._forwards += 1


class _Hook:
    """Calls the probe with the module's path. In a copy of the model, made while it is watched, it does nothing."""

    def __init__(self, path: str, method: Callable[..., None] | None = None) -> None:
        self.path, self.method = path, method

    def __call__(self, *args: Any) -> None:
        if self.method is not None:
            self.method(self.path, *args)

    def __reduce__(self) -> tuple[type[_Hook], tuple[str]]:
        return _Hook, (self.path,)


@dataclass(frozen=True)
class _Site:
    call: RectifierCall
    counts: dict[torch.device, Tensor]  # int64 (C, 4 or 5), one for each device that ran the site
    patterns: dict[torch.device, SignPatterns]

    def add(self, signs: Signs) -> None:
        device = signs.counts.device
        if device in self.counts:
            self.counts[device] += signs.counts
        else:
            self.counts[device] = signs.counts
        if signs.hashes is not None:
            state = self.patterns.get(device, SignPatterns.empty(self.call.channels, device=device))
            with torch.inference_mode(False):
                self.patterns[device] = state.add(signs.hashes)

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
