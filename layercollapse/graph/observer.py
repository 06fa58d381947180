"""Hooks on a model that say which module's forward runs, around the mode that sees the rectifier calls in it."""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from layercollapse.errors import LayerCollapseError
from layercollapse.graph.export import scripted
from layercollapse.graph.replay import ModuleWatch, Script, replayable, script_of
from layercollapse.graph.transparent import RECTIFIERS, calls_modules_only, calls_none
from layercollapse.graph.watch import (
    ROOT,
    CountBuffers,
    ForwardWatch,
    MaskArgument,
    RectifierCall,
    Signs,
    site_path,
    unwrapped,
)

if TYPE_CHECKING:
    from typing_extensions import Self


class ForwardObserver(ABC):
    """Context manager that sees the rectifier calls of every forward pass of a model.

    Args:
        model: called as ``model(x)``, not as ``model.forward(x)``.
        patterns: whether to hash the signs of every row, too.

    Raises:
        LayerCollapseError: the model has scripted parts, which cannot be watched.
    """

    def __init__(self, model: nn.Module, *, patterns: bool = False) -> None:
        self.model = unwrapped(model)
        if (path := scripted(self.model)) is not None:
            raise LayerCollapseError(
                f"model: expected modules in Python, got a scripted one at {path}, whose calls cannot be seen"
            )
        self._patterns = patterns
        self._masks = MaskArgument(self.model)
        self._pending: Tensor | None = None  # bool (N, T), for the next forward pass
        self._local = threading.local()
        self._active: ExitStack | None = None
        self._modules: set[str] | None = None  # rectifier modules, where no other rectifier can be called
        self._script: Script | None = None

    def __enter__(self) -> Self:
        if self._active is not None:
            raise LayerCollapseError("probe: expected to be entered once at a time, got a nested `with` on it")
        self._modules = self._script = None
        if not self._patterns and calls_modules_only(self.model):
            self._modules = {
                site_path(path) for path, module in self.model.named_modules() if type(module) in RECTIFIERS
            }
        with ExitStack() as stack:
            if "torch._dynamo" in sys.modules:
                # Compiled code would run without the hooks and count nothing.
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for path, module in self.model.named_modules():
                if path != ROOT and calls_none(module):
                    continue
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

    @abstractmethod
    def _commit(self, seen: Mapping[str, tuple[RectifierCall, Signs]]) -> None:
        """Take the sites of a forward pass that has ended, in order; called in the thread that ran it."""

    def _enter(self, path: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if path == ROOT:
            # A backward pass that calls the whole model again is recomputing a checkpoint.
            if torch._C._current_graph_task_id() != -1:
                return
            self._abandon()
            explicit, self._pending = self._pending, None
            masks = self._masks(args, kwargs) if explicit is None else None
            if not hasattr(self._local, "buffers"):
                self._local.buffers = CountBuffers()
            if self._script is not None and explicit is masks is None and replayable(args, kwargs):
                self._local.forward = ModuleWatch(self._script, self._local.buffers)
            else:
                self._local.forward = ForwardWatch(explicit, masks, self._patterns, self._local.buffers)
            self._local.forward.__enter__()
        current = getattr(self._local, "forward", None)
        if current is not None:
            current.enter(path, module, args, kwargs)

    def _leave(self, path: str, module: nn.Module, args: tuple, output: Any) -> None:
        forward = getattr(self._local, "forward", None)
        if forward is not None and forward.leave(path):
            self._abandon()
            if not forward.raising():
                self._commit(forward.seen)
                self._learn(forward)

    def _learn(self, forward: ForwardWatch | ModuleWatch) -> None:
        if isinstance(forward, ForwardWatch):
            self._script = None if self._modules is None else script_of(forward, self._modules)
        elif not forward.foreseen:
            self._script = None

    def _abandon(self) -> None:
        """Take this thread's mode down; an interrupt (Ctrl-C) skips even hooks that are always called."""
        forward = getattr(self._local, "forward", None)
        self._local.forward = None
        if forward is not None:
            forward.__exit__(None, None, None)


class _Hook:
    """Calls the observer with the module's path. In a copy of the model, made while it is watched, it does nothing."""

    def __init__(self, path: str, method: Callable[..., None] | None = None) -> None:
        self.path, self.method = path, method

    def __call__(self, *args: Any) -> None:
        if self.method is not None:
            self.method(self.path, *args)

    def __reduce__(self) -> tuple[type[_Hook], tuple[str]]:
        return _Hook, (self.path,)
