"""How a rectifier call of a live model becomes ``y = scale * x + shift``: a module in its place, or a mode around it.

`layercollapse.prune.linearize` is the way to it. The call stays a site of the same name, of kind ``"linear"``, so that
no other site is renumbered.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from layercollapse.errors import LayerCollapseError
from layercollapse.graph import rectifiers
from layercollapse.graph.rectifiers import linear_site
from layercollapse.graph.transparent import calls_none
from layercollapse.graph.watch import ROOT, known_function, numbered, site_path, unwrapped

# Attribute of a model: what `linearize` returned for it, while it holds.
HANDLES = "_linearized"


@contextmanager
def rectified(model: nn.Module) -> Iterator[None]:
    """Inside, the rectifiers of a model are as they were before any `linearize`: what it is to be timed as."""
    handles = list(vars(unwrapped(model)).get(HANDLES, ()))
    for handle in reversed(handles):
        handle.remove()
    try:
        yield
    finally:
        for handle in handles:
            handle.apply()


class Line(NamedTuple):
    """``y = scale * x + shift`` in the place of a rectifier call; None: a scale of one, a shift of zero.

    Attributes:
        scale: (C,), or (1,) for all neurons.
        shift: (C,) or (1,).
        channel_dim: dimension of the C neurons.
    """

    scale: Tensor | None
    shift: Tensor | None
    channel_dim: int

    def at(self, like: Tensor) -> Line:
        """The same where another tensor is, and in its dtype if that is floating point."""
        dtype = like.dtype if like.dtype.is_floating_point else torch.float32
        scale, shift = (None if part is None else part.to(like.device, dtype) for part in self[:2])
        return Line(scale, shift, self.channel_dim)

    def tensor(self) -> Tensor:
        """Scales and shifts: float64 (2, C) or (2, 1), on the CPU."""
        scale = torch.ones(1) if self.scale is None else self.scale
        shift = torch.zeros(1) if self.shift is None else self.shift
        return torch.stack(torch.broadcast_tensors(scale.cpu().double(), shift.cpu().double()))

    def __call__(self, x: Tensor, in_place: bool) -> Tensor:
        """Any shape -> the same; in place where others read x after the rectifier."""
        scale, shift = (None if part is None else part.to(x.device, x.dtype) for part in self[:2])
        if scale is None and shift is None:
            return linear_site(x, None, None, self.channel_dim, in_place)
        y = linear_site(x, scale, shift, self.channel_dim)
        return x.copy_(y) if in_place else y


# What a call is replaced by: of its input, and of whether others read that after the rectifier, its output.
Replacement: TypeAlias = Line | Callable[[Tensor, bool], Tensor]


class LinearSite(nn.Module):
    """Stands where a rectifier module stood that a forward pass calls once.

    Scale and shift are buffers that a state dict does not have; the rectifier's own parameters (of a PReLU) stay in it,
    and are not trained.

    Args:
        line: what it computes.
        rectifier: what stood there.
    """

    scale: Tensor | None
    shift: Tensor | None

    def __init__(self, line: Line, rectifier: nn.Module) -> None:
        super().__init__()
        self.register_buffer("scale", line.scale, persistent=False)
        self.register_buffer("shift", line.shift, persistent=False)
        self.trained = [parameter for parameter in rectifier.parameters() if parameter.requires_grad]
        for name, parameter in rectifier.named_parameters():
            parameter.requires_grad_(False)
            self.register_parameter(name, parameter)
        self.channel_dim = line.channel_dim
        self.in_place = bool(getattr(rectifier, "inplace", False))
        self.replaced = (rectifier,)
        self.train(rectifier.training)

    @property
    def line(self) -> Line:
        """What it computes."""
        return Line(self.scale, self.shift, self.channel_dim)

    def restore(self) -> nn.Module:
        """The rectifier, as it was."""
        for parameter in self.trained:
            parameter.requires_grad_()
        return self.replaced[0].train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return self.line(x, self.in_place)

    def extra_repr(self) -> str:
        return f"instead of {self.replaced[0]}"


class LinearCalls:
    """The other calls of a model that are lines: functions, methods, and modules that a forward pass calls repeatedly.

    Hooks on its modules say whose forward runs; in that of a module with such calls, a mode replaces them.

    Args:
        model: the model.
        lines: of the sites, by name: a `Line`, or what else takes the place of a call.
    """

    def __init__(self, model: nn.Module, lines: Mapping[str, Replacement]) -> None:
        self.lines = lines
        by_path: dict[str, dict[str, Replacement]] = {}
        for name, line in lines.items():
            by_path.setdefault(name.partition("#")[0], {})[name] = line
        state, self._handles = _State(), []
        for path, module in model.named_modules():
            if path != ROOT and calls_none(module):
                continue
            own = by_path.get(site_path(path) or "forward", {})
            hook = _Hook(state, site_path(path), own)
            self._handles += [
                module.register_forward_pre_hook(hook.enter),
                module.register_forward_hook(hook.leave, prepend=True, always_call=True),
            ]

    def remove(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()


class _State(threading.local):
    """The modules of the forward pass that runs, and how many calls each has made."""

    def __init__(self) -> None:
        self.running: list[_Calls | None] = []
        self.counts, self.entered = Counter[str](), Counter[str]()

    def __deepcopy__(self, memo: dict[int, Any]) -> _State:
        return memo.setdefault(id(self), _State())

    def __reduce__(self) -> tuple[type[_State], tuple[()]]:
        return _State, ()


class _Calls(TorchFunctionMode):
    """Replaces calls that a module's own forward makes, while no other module's runs in it."""

    def __init__(self, path: str, lines: Mapping[str, Replacement], count: int) -> None:
        super().__init__()
        self._path, self._lines = path, lines
        self.count, self.paused = count, 0

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        known = known_function(func)
        rectifier = known.rectifier
        x, rest = (args[0], args[1:]) if args else (kwargs.get("input"), ())
        if (
            self.paused
            or rectifier is None
            or not isinstance(x, Tensor)
            or rectifiers.describe(rectifier, x.dtype, rest, kwargs) is None
        ):
            return func(*args, **kwargs)
        line = self._lines.get(numbered(self._path, self.count))
        self.count += 1
        if line is None:
            return func(*args, **kwargs)
        return line(x, known.writes or bool(kwargs.get("inplace")))


class _Hook:
    """Says when a module's forward begins and ends. A copy of the model has its own."""

    def __init__(self, state: _State, path: str, lines: Mapping[str, Replacement]) -> None:
        self.state, self.path, self.lines = state, path, lines

    def enter(self, module: nn.Module, args: tuple) -> None:
        state, again = self.state, torch._C._current_graph_task_id() != -1  # a checkpoint that is computed again
        if self.path == ROOT and not again:
            state.running.clear()
            state.counts.clear()
            state.entered.clear()
        if state.running and state.running[-1] is not None:
            state.running[-1].paused += 1
        if not self.lines:
            state.running.append(None)
            return
        path = self.path or "forward"
        if again and state.entered[path] > 1:
            raise LayerCollapseError(
                f"model: expected a module that is called once in a checkpoint, got {path!r}, of whose "
                f"{state.entered[path]} calls it is not known which is computed again; make its rectifiers modules"
            )
        state.entered[path] += 0 if again else 1
        calls = _Calls(path, self.lines, 0 if again else state.counts[path])
        state.running.append(calls)
        calls.__enter__()

    def leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        state = self.state
        if not state.running:
            return
        calls = state.running.pop()
        if calls is not None:
            calls.__exit__(None, None, None)
            state.counts[self.path or "forward"] = calls.count
        if state.running and state.running[-1] is not None:
            state.running[-1].paused -= 1
