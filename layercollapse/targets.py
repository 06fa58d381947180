"""Which weights of a model are pruned, and under which rectifier site."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from layercollapse.errors import LayerCollapseError
from layercollapse.graph import Capture
from layercollapse.nodes import has_weight, weight_of


@dataclass(frozen=True)
class Targets:
    """The weights to prune.

    Attributes:
        layers: names of the weights of every site, in execution order; a weight is in one site only.
        aliases: for each of these weights, all names that the capture has for it (a shared weight has several).
    """

    layers: dict[str, tuple[str, ...]]
    aliases: dict[str, tuple[str, ...]]


def prunable(model: nn.Module, capture: Capture, ignore: str | Sequence[str] = ()) -> Targets:
    """The weights that feed rectifier sites, without output layers and what `ignore` names.

    Args:
        model: the captured model.
        capture: its capture.
        ignore: names of modules, weights or sites; shell patterns; regular expressions that start with ``re:``.

    Raises:
        LayerCollapseError: a plain name that the model does not have, or nothing is left to prune.
    """
    patterns = [ignore] if isinstance(ignore, str) else list(ignore)
    sites = [site.name for site in capture.sites]
    _check_patterns(patterns, {*dict(model.named_modules()), *capture.weights, *sites} - {""})
    parameters = dict(model.named_parameters(remove_duplicate=False))
    first: dict[int, str] = {}
    for name, parameter in parameters.items():
        first.setdefault(id(parameter), name)
    names = {name: first[id(parameters[name])] for name in capture.weights if name in parameters}
    aliases: dict[str, tuple[str, ...]] = {}
    for alias, name in names.items():
        aliases[name] = (*aliases.get(name, ()), alias)

    taken = {names[name] for name in capture.output_weights if name in names}
    layers: dict[str, tuple[str, ...]] = {}
    for site in capture.sites:
        chosen: dict[str, None] = {}
        for name in (names[weight] for weight in site.feeding if weight in names):
            if name in taken:
                continue
            known_as = {part for alias in aliases[name] for part in _names(alias)}
            if not any(_matches(pattern, candidate) for pattern in patterns for candidate in {*known_as, site.name}):
                chosen[name] = None
        taken |= chosen.keys()
        if chosen:
            layers[site.name] = tuple(chosen)
    if not layers:
        stored = {node.name for node in capture.graph.nodes if weight_of(node, capture.tensors) is not None}
        made = sum(has_weight(node, capture.tensors) and node.name not in stored for node in capture.graph.nodes)
        hint = (
            f"; {made} layers compute theirs in the forward pass: make them parameters first, with "
            "torch.nn.utils.prune.remove or torch.nn.utils.parametrize.remove_parametrizations"
        )
        raise LayerCollapseError(
            f"model: expected weights that feed a rectifier and are not ignored, got none in {len(sites)} sites"
            + (hint if made else "")
        )
    return Targets(layers, {name: aliases[name] for names in layers.values() for name in names})


def _names(weight: str) -> Iterator[str]:
    """A weight's name and the paths of the modules around it."""
    while weight:
        yield weight
        weight = weight.rpartition(".")[0]


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    return pattern == name or fnmatchcase(name, pattern)


def _check_patterns(patterns: Sequence[str], known: set[str]) -> None:
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise LayerCollapseError(f"ignore: expected names or patterns, got {type(pattern).__name__}")
        if pattern.startswith("re:"):
            try:
                re.compile(pattern[3:])
            except re.error as error:
                raise LayerCollapseError(f"ignore: expected a regular expression, got {pattern!r}: {error}") from error
        elif pattern not in known and not any(letter in pattern for letter in "*?["):
            raise LayerCollapseError(f"ignore: expected a module, weight or site of the model, got {pattern!r}")
