"""Making rectifiers linear in a live model, before or while it trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from layercollapse.entropy.layer import OFF, SATURATED, LayerEntropy
from layercollapse.errors import LayerCollapseError
from layercollapse.graph.aten import module_path
from layercollapse.graph.capture import Capture, Site, checked_capture
from layercollapse.graph.linear_sites import HANDLES, Line, LinearCalls, LinearSite, Replacement
from layercollapse.graph.meta import COMPOSED
from layercollapse.graph.watch import site_path, unwrapped

_SLOPES = {"identity": 1.0, "zero": 0.0}
# What a site becomes: see `linearize`.
Becomes: TypeAlias = "str | float | LayerEntropy | Tensor | tuple[Tensor, Tensor]"


class Linearized:
    """The sites of a model that `linearize` made linear. A context manager: leaving it puts the rectifiers back.

    Args:
        model: the model, unwrapped.
        lines: site -> its scale, shift and channel dimension.
        captured: of the model without them.
    """

    def __init__(self, model: nn.Module, lines: Mapping[str, Line], captured: Capture) -> None:
        self.model, self.lines = model, dict(lines)
        self._called_once, self._written = _called_once(captured), written_modules(captured)
        self._modules: list[tuple[nn.Module, str, nn.Module]] = []
        self._calls: LinearCalls | None = None
        self.apply()

    def __enter__(self) -> Linearized:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()

    @property
    def applied(self) -> bool:
        """Whether the model computes the lines."""
        return bool(self._modules) or self._calls is not None

    def apply(self) -> None:
        """Put the lines in the place of the rectifiers; a second time it does nothing."""
        if self.applied:
            return
        like = next(self.model.parameters(), torch.zeros(()))
        lines = {name: line.at(like) for name, line in self.lines.items()}
        own = {
            name: module
            for name, module in ((site_path(path), module) for path, module in self.model.named_modules())
            if name in lines and name in self._called_once and (_is_rectifier(module) or name in self._written)
        }
        linear = {id(module): LinearSite(lines[name], module) for name, module in own.items()}
        self._modules = [
            (parent, attribute, child)
            for parent in list(self.model.modules())
            for attribute, child in parent._modules.items()
            if child is not None and id(child) in linear
        ]
        for parent, attribute, module in self._modules:
            parent._modules[attribute] = linear[id(module)]
        rest: dict[str, Replacement] = {name: line for name, line in lines.items() if name not in own}
        self._calls = LinearCalls(self.model, rest) if rest else None
        # So that others find it: an attribute, which a copy of the model has a copy of.
        vars(self.model).setdefault(HANDLES, []).append(self)

    def remove(self) -> None:
        """Put the rectifiers back; a second time it does nothing."""
        for parent, attribute, module in self._modules:
            linear = parent._modules[attribute]
            parent._modules[attribute] = linear.restore() if isinstance(linear, LinearSite) else module
        if self._calls is not None:
            self._calls.remove()
        if self.applied:
            vars(self.model)[HANDLES].remove(self)
        self._modules, self._calls = [], None

    def state_dict(self) -> dict[str, Tensor]:
        """The lines, for `torch.save` or safetensors: site -> float64 (2, C) or (2, 1), scales and shifts.

        `linearize` takes such tensors.
        """
        return {name: line.tensor() for name, line in self.lines.items()}


def linearize(
    model: nn.Module,
    sites: Mapping[str, Becomes],
    example_inputs: Any,
    *,
    captured: Capture | None = None,
) -> Linearized:
    """Make rectifier calls of a model linear, in place, until `Linearized.remove`.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> handle = linearize(model, {"1": "identity"}, torch.zeros(2, 4))
    >>> model
    Sequential(
      (0): Linear(in_features=4, out_features=8, bias=True)
      (1): LinearSite(instead of ReLU())
      (2): Linear(in_features=8, out_features=3, bias=True)
    )
    >>> handle.remove()

    It holds in any pass of ``model(x)``, with gradients, autocast, checkpoints and DistributedDataParallel, for any
    site that `capture` and `EntropyProbe` name and that is not written out beside other calls: a module, a function or
    method, a module that is called repeatedly, in place or not. These and `collapse` find a site of kind ``"linear"``
    under the same name, which collapses exactly. Modules that a forward pass calls once are compiled by `torch.compile`
    with what is around them; other calls break its graph, and with ``fullgraph=True`` are an error of torch.

    Removing rectifiers by the identity and training on is EASIER (arXiv 2404.18949); by what most values of each neuron
    do, the states of TLC (arXiv 2412.15077).

    Args:
        model: in any mode; it is changed.
        sites: site -> what it becomes. ``"identity"``; ``"zero"``; a number, the slope of all neurons; a tensor (C,), a
            slope for each; two tensors (C,) or (1,), slopes and constants; or the site's `LayerEntropy`: each neuron
            takes the piece of the rectifier that most of its values are in.
        example_inputs: as for `capture`.
        captured: the model's capture with these inputs, if there is one.

    Raises:
        LayerCollapseError: no such site, one that is linear already, one that is written out of several operations, or
            one that cannot become this. The model is as it was.

    Returns:
        What takes it back, and may be saved.
    """
    model = unwrapped(model)
    captured = checked_capture(model, example_inputs, captured)
    return Linearized(model, lines_of(captured, sites), captured)


def lines_of(captured: Capture, sites: Mapping[str, Becomes]) -> dict[str, Line]:
    """What the sites become, checked; the errors are those of `linearize`."""
    if not isinstance(sites, Mapping) or not sites:
        raise LayerCollapseError(f"sites: expected a mapping from names of sites, got {sites!r}")
    composed, lines = _composed(captured), {}
    for name, becomes in sites.items():
        site = captured.site(name)
        if site.kind == "linear":
            raise LayerCollapseError(f"sites: {name!r} is linear already")
        if name.partition("#")[0] in composed:
            raise LayerCollapseError(
                f"sites: {name!r} is called where the model writes rectifiers out of several operations; make each of "
                "them a module"
            )
        lines[name] = _line(site, becomes)
    return lines


def linearizable(captured: Capture) -> list[Site]:
    """The sites that can be made linear and are not yet, in execution order."""
    composed = _composed(captured)
    return [s for s in captured.sites if s.kind != "linear" and s.name.partition("#")[0] not in composed]


def _composed(captured: Capture) -> set[str]:
    """The paths in which rectifiers are written out among other calls: these cannot be told by their numbers."""
    paths = {site.name.partition("#")[0] for site in captured.sites if captured.call_of(site) in COMPOSED}
    return paths - written_modules(captured)


def written_modules(captured: Capture) -> frozenset[str]:
    """The paths of modules that compute one rectifier, which they write out, and nothing else."""
    nodes: dict[str, list[fx.Node]] = {}
    for node in captured.graph.nodes:
        if node.op == "call_function":
            nodes.setdefault(module_path(node), []).append(node)
    once = _called_once(captured)
    return frozenset(path for path, own in nodes.items() if path in once and len(own) == 1 and own[0] in COMPOSED)


def _called_once(captured: Capture) -> frozenset[str]:
    """The paths in which a forward pass makes one rectifier call."""
    calls = Counter(name.partition("#")[0] for name in (*(site.name for site in captured.sites), *captured.unread))
    return frozenset(path for path, count in calls.items() if count == 1)


def _is_rectifier(module: nn.Module) -> bool:
    return type(module).__module__ == "torch.nn.modules.activation"


def _line(site: Site, becomes: Becomes) -> Line:
    """Scale and shift in float64, None where they are one and zero."""
    if isinstance(becomes, LayerEntropy):
        if becomes.neurons != site.channels:
            raise LayerCollapseError(
                f"sites: expected counts of {site.channels} neurons at {site.name!r}, got {becomes.neurons}"
            )
        states = becomes.likeliest
        scale, shift = torch.ones(site.channels, dtype=torch.float64), torch.zeros(site.channels, dtype=torch.float64)
        scale[(states == OFF) | (states == SATURATED)] = 0.0
        shift[states == OFF] = site.lower
        if site.upper is not None:
            shift[states == SATURATED] = site.upper
    elif isinstance(becomes, str) and becomes in _SLOPES:
        scale, shift = torch.full((1,), _SLOPES[becomes], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    elif isinstance(becomes, int | float) and not isinstance(becomes, bool):
        scale, shift = torch.full((1,), float(becomes), dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    elif isinstance(becomes, Tensor) and becomes.shape == (site.channels,):
        scale, shift = becomes.detach().cpu().double(), torch.zeros(1, dtype=torch.float64)
    elif (isinstance(becomes, tuple | list) and len(becomes) == 2) or (
        isinstance(becomes, Tensor) and becomes.ndim == 2
    ):
        scale, shift = (part.detach().cpu().double() if isinstance(part, Tensor) else part for part in becomes)
        if not all(isinstance(p, Tensor) and p.shape in ((site.channels,), (1,)) for p in (scale, shift)):
            raise LayerCollapseError(
                f"sites: expected scales and shifts of {site.channels} neurons or of all at {site.name!r}, got "
                f"{[tuple(p.shape) if isinstance(p, Tensor) else p for p in (scale, shift)]}"
            )
    else:
        raise LayerCollapseError(
            f"sites: expected 'identity', 'zero', a slope, a tensor of {site.channels} slopes, slopes and constants, "
            f"or a LayerEntropy for {site.name!r}, got {becomes!r}"
        )
    if not bool(scale.isfinite().all() & shift.isfinite().all()):
        raise LayerCollapseError(f"sites: expected finite slopes and constants for {site.name!r}, got {becomes!r}")
    return Line(
        None if bool((scale == 1).all()) else scale, None if bool((shift == 0).all()) else shift, site.channel_dim
    )
