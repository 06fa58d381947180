"""Which weights of a model are pruned, and under which rectifier site."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod

from layercollapse.errors import LayerCollapseError
from layercollapse.graph.aten import computed, has_weight, module_path, weight_of
from layercollapse.graph.capture import Capture

_SHOWN = 6  # sites of one reason


@dataclass(frozen=True)
class Targets:
    """The weights to prune.

    Attributes:
        layers: names of the weights of every site, in execution order; a weight is in one site only.
        aliases: for each of these weights, all names that the capture has for it (a shared weight has several).
        unfed: the sites without weights of their own -> why.
    """

    layers: dict[str, tuple[str, ...]]
    aliases: dict[str, tuple[str, ...]]
    unfed: dict[str, str]


def prunable(model: nn.Module, capture: Capture, ignore: str | Sequence[str] = ()) -> Targets:
    """The weights that feed rectifier sites, without output layers and what `ignore` names; there may be none.

    Args:
        model: the captured model.
        capture: its capture.
        ignore: names of modules, weights or sites; shell patterns; regular expressions that start with ``re:``.

    Raises:
        LayerCollapseError: a plain name that the model does not have.
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

    taken = {names[name]: "an output layer" for name in capture.output_weights if name in names}
    layers: dict[str, tuple[str, ...]] = {}
    unfed: dict[str, str] = {}
    for site in capture.sites:
        if site.kind == "linear":
            unfed[site.name] = "it has been made linear"
            continue
        chosen: dict[str, None] = {}
        left: dict[str, None] = {}
        for name in (names[weight] for weight in site.feeding if weight in names):
            known_as = {part for alias in aliases[name] for part in _names(alias)}
            if name in taken:
                left[f"{name} is {taken[name]}"] = None
            elif any(_matches(pattern, candidate) for pattern in patterns for candidate in {*known_as, site.name}):
                left[f"{name} is ignored"] = None
            else:
                chosen[name] = None
        taken |= dict.fromkeys(chosen, f"pruned with {site.name}")
        if chosen:
            layers[site.name] = tuple(chosen)
        else:
            unfed[site.name] = ", ".join(left) or f"it reads {site.unfed}"
    return Targets(layers, {name: aliases[name] for names in layers.values() for name in names}, unfed)


def check_any(targets: Targets, model: nn.Module, capture: Capture) -> None:
    """Refuse a model without a weight to prune.

    Raises:
        LayerCollapseError: there is none; the message says for every site why.
    """
    if targets.layers:
        return
    raise LayerCollapseError(
        f"model: expected weights that feed a rectifier and are not ignored, got none in {len(capture.sites)} sites"
        + "".join(f"; {line}" for line in [*by_reason(targets.unfed), *_advice(model, capture)])
    )


def by_reason(unfed: Mapping[str, str]) -> list[str]:
    """Lines for sites without weights of their own, those with one reason in one line."""
    sites: dict[str, list[str]] = {}
    for site, reason in unfed.items():
        sites.setdefault(re.sub(r" \(.*?\)", "", reason), []).append(site)
    return [f"{_some(names)}: {unfed[names[0]] if len(names) == 1 else reason}" for reason, names in sites.items()]


def _some(names: Sequence[str]) -> str:
    """The first names of many."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _advice(model: nn.Module, capture: Capture) -> Iterator[str]:
    """What can be done about weights that are computed in the forward pass."""
    modules = dict(model.named_modules())
    counts: Counter[str] = Counter()
    known = computed(capture.graph, capture.tensors)
    for node in capture.graph.nodes:
        if has_weight(node, known) and weight_of(node, capture.tensors) is None:
            counts[_maker(modules.get(module_path(node), model))] += 1
    for advice, count in counts.items():
        layers = "1 layer computes its weight" if count == 1 else f"{count} layers compute theirs"
        yield f"{layers} in the forward pass: {advice}"


def _maker(module: nn.Module) -> str:
    """How a module's weight becomes a parameter."""
    around = [module, *module.children()]
    if any(parametrize.is_parametrized(part) for part in around):
        return "make it a parameter with torch.nn.utils.parametrize.remove_parametrizations"
    hooks = [hook for part in around for hook in part._forward_pre_hooks.values()]
    if any(isinstance(hook, BasePruningMethod) for hook in hooks):
        return "make it a parameter with torch.nn.utils.prune.remove"
    if hooks:
        return "make it a parameter with torch.nn.utils.remove_weight_norm or remove_spectral_norm"
    return "its own forward does (weight standardization, say); an ordinary layer in its place can be pruned"


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
