"""Forward passes of a model that need not be watched call by call, after one that was.

Where a model calls rectifiers as modules only (`layercollapse.graph.transparent`), a hook on these sees every call, and
where its channels lie is known from the pass that was watched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from layercollapse.errors import LayerCollapseError
from layercollapse.graph.watch import (
    ROOT,
    CountBuffers,
    ForwardWatch,
    RectifierCall,
    Signs,
    default_dim,
    handled,
    numbered,
)


class Site(NamedTuple):
    """A call of a rectifier module; `dim` is where its channels lie, None for where they lie by default."""

    name: str
    call: RectifierCall
    dim: int | None


Script = Mapping[str, list[Site]]  # path of a rectifier module -> its calls in a forward pass, in order


def script_of(watch: ForwardWatch, modules: set[str]) -> Script | None:
    """What a forward pass that was watched says of the next ones.

    Args:
        watch: after the pass.
        modules: paths of the model's rectifier modules.

    Returns:
        None where a module was not called, or its call is no site of its own: a part of one that is written out, say.
    """
    script: dict[str, list[Site]] = {}
    for sighting in watch.sightings:
        sites = script.setdefault(sighting.path, [])
        sites.append(Site(numbered(sighting.path, len(sites)), sighting.call, sighting.dim))
    called = Counter(path for path in watch.entered if path in modules)
    same = script.keys() == modules and all(len(sites) == called[path] for path, sites in script.items())
    return script if same else None


class ModuleWatch(AbstractContextManager["ModuleWatch"]):
    """One forward pass of the model: counts the inputs of its rectifier modules; see `ForwardWatch`.

    Attributes:
        foreseen: whether no module was called more often than the script says.
    """

    def __init__(self, script: Script, buffers: CountBuffers) -> None:
        self._script, self._buffers = script, buffers
        self._places: dict[str, int] = {}
        self.seen: dict[str, tuple[RectifierCall, Signs]] = {}
        self.foreseen = True
        self._handling = handled()
        buffers.restart()

    def __exit__(self, *exc: object) -> None:
        pass

    def raising(self) -> bool:
        """Whether the forward pass is being left by an exception."""
        return handled() is not self._handling

    def enter(self, path: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Count the input of a module if that is a rectifier."""
        sites = self._script.get(path)
        x = args[0] if args else kwargs.get("input")
        if sites is None or not isinstance(x, Tensor):
            return
        place = self._places.get(path, 0)
        self._places[path] = place + 1
        if place < len(sites):
            name, call, dim = sites[place]
        else:
            name, (_, call, dim) = numbered(path, place), sites[-1]
            self.foreseen = False
        if dim is None:
            dim = default_dim(x)
        if x.ndim < 2:
            x, dim = x.detach().reshape(-1, 1), 1
        try:
            counts = self._buffers.count(x, dim, call.upper)
        except LayerCollapseError as error:
            raise LayerCollapseError(f"site {name!r}: {error}") from error
        if len(counts) != call.channels:
            call = RectifierCall(call.kind, len(counts), call.lower, call.upper)
        self.seen[name] = call, Signs(counts, None)

    def leave(self, path: str) -> bool:
        """Whether the forward pass ends with a module's."""
        return path == ROOT


def replayable(args: tuple, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of the model runs no function that it is given, and lies in no transform of torch.func."""
    inside = torch._C._functorch.peek_interpreter_stack() is not None  # tensors stand for several there
    return not inside and not any(callable(value) for value in (*args, *kwargs.values()))
