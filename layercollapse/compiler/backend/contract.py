"""The call of a collapsed model is that of the original: arguments and their defaults, classes of outputs, a loss."""

from __future__ import annotations

import inspect
import keyword
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from layercollapse._util.modes import evaluating
from layercollapse.errors import LayerCollapseError
from layercollapse.graph.arguments import Arguments
from layercollapse.graph.export import call_arguments, copied

LABELS = "labels"
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Outputs(nn.Module):
    """The container of a model's outputs, of any class that torch takes apart.

    Args:
        spec: how they are packed, a pytree spec.
    """

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, leaves: Sequence[Any]) -> Any:
        """The outputs one by one -> the outputs in their container."""
        return pytree.tree_unflatten(list(leaves), self.spec)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


def _next_token(logits: Tensor, labels: Tensor) -> Tensor:
    return _cross_entropy(logits[..., :-1, :], labels[..., 1:])


def _squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.numel() != labels.numel():
        raise LayerCollapseError(
            f"{LABELS}: expected as many as logits {tuple(logits.shape)}, got {tuple(labels.shape)}"
        )
    return F.mse_loss(logits.squeeze(), labels.squeeze())


# Losses of logits (..., C) and labels: (...) class numbers, of which -100 does not count, or numbers (..., C).
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": _cross_entropy,
    "next_token": _next_token,
    "squared_error": _squared_error,
    "binary_cross_entropy": F.binary_cross_entropy_with_logits,
}


class Loss(nn.Module):
    """Adds the original's loss to the outputs where there are labels, as the original did.

    Args:
        integer: which of `LOSSES` is that of integer labels; None: the original takes none.
        floating: the same of floating-point labels.
        single: whether logits of 16 bits become float32 first.
    """

    def __init__(self, integer: str | None, floating: str | None, single: bool = False) -> None:
        super().__init__()
        if not {integer, floating} <= {None, *LOSSES}:
            raise LayerCollapseError(f"loss: expected {', '.join(LOSSES)}, got {integer!r} and {floating!r}")
        self.integer, self.floating, self.single = integer, floating, bool(single)

    def forward(self, output: Any, labels: Tensor | None) -> Any:
        """Outputs with logits (..., C) and labels -> the same outputs with a loss, a scalar, in front."""
        if labels is None:
            return output
        kind = self.floating if labels.is_floating_point() else self.integer
        if kind is None:
            expected = "integers" if self.integer else "floating-point numbers"
            raise LayerCollapseError(f"{LABELS}: expected {expected}, as the original takes, got {labels.dtype}")
        logits = _logits(output)
        logits = logits.float() if self.single else logits
        loss = LOSSES[kind](logits, labels.to(logits.device))
        if isinstance(output, Mapping):
            made: Any = type(output)
            return made(loss=loss, **output)
        changed: Any = replace if is_dataclass(output) else type(output)._replace
        return changed(output, loss=loss)

    def extra_repr(self) -> str:
        return f"integer={self.integer!r}, floating={self.floating!r}"


def _logits(output: Any) -> Any:
    if isinstance(output, Mapping):
        return output.get("logits")
    return getattr(output, "logits", None)


def keep_contract(emitted: fx.GraphModule, model: nn.Module, example_inputs: Any) -> fx.GraphModule:
    """Give a collapsed model the original's arguments, in their order, and the loss of its labels.

    An optional argument that the example did not have takes its default alone, any other is an error that names it.
    `labels` are an exception where they add a loss to the outputs, and nothing else, which is one of `LOSSES`.

    Args:
        emitted: the collapsed model, whose placeholders are in the order of the example inputs; changed in place.
        model: the original.
        example_inputs: what it was captured with.
    """
    args, kwargs = call_arguments(example_inputs)
    places = [node for node in emitted.graph.nodes if node.op == "placeholder"]
    if len(places) != len(args) + len(kwargs) or any(
        isinstance(value, tuple | list | Mapping) for value in (*args, *kwargs.values())
    ):
        return emitted
    parameters = inspect.signature(model.forward).parameters
    names = [*_positional(parameters, places[: len(args)]), *kwargs]
    values = dict(zip(names, [*args, *kwargs.values()], strict=True))
    given = dict(zip(names, places, strict=True))
    loss = None if LABELS in given else loss_of(model, args, kwargs)
    nodes = list[fx.Node]()
    needed, without = dict[str, fx.Node](), dict[str, tuple[fx.Node, Any]]()
    for name in _in_order(parameters, names):
        default = _default(parameters.get(name))
        if name in given:
            node = given[name]
            if name.isidentifier() and not keyword.iskeyword(name):
                node.target = name
            if (name in parameters and parameters[name].default is not inspect.Parameter.empty) or _optional(nodes):
                # A value that is no tensor is compared with the example's, see `with_values`.
                node.args = (None if isinstance(values[name], Tensor) else default,)
                if isinstance(values[name], Tensor):
                    needed[name] = node
        else:
            with emitted.graph.inserting_before():
                node = emitted.graph.placeholder(name, default_value=default)
            if name != LABELS or loss is None:
                without[name] = (node, default)
        nodes.append(node)
    _put_first(emitted.graph, nodes)
    if needed or without:
        check = Arguments(list(needed), {name: default for name, (_, default) in without.items()})
        _call(emitted, "arguments", check, nodes[-1], list(needed.values()), [node for node, _ in without.values()])
    if loss is not None:
        output = next(node for node in emitted.graph.nodes if node.op == "output")
        labels = next(node for node in nodes if node.target == LABELS)
        output.args = (_call(emitted, "loss", loss, output.prev, output.args[0], labels),)
    emitted.recompile()
    return emitted


def _positional(parameters: Mapping[str, inspect.Parameter], places: Sequence[fx.Node]) -> list[str]:
    """Names of the arguments that come by position; those of ``*args`` have the names that torch.export gave them."""
    named = [name for name, parameter in parameters.items() if parameter.kind in _BY_POSITION]
    return [*named[: len(places)], *(str(node.target) for node in places[len(named) :])]


def _in_order(parameters: Mapping[str, inspect.Parameter], given: Sequence[str]) -> list[str]:
    """The arguments that are given and all optional ones, in the order of the signature."""
    others = [name for name in given if name not in parameters]
    order = list[str]()
    for name, parameter in parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            order += [other for other in others if other.startswith(f"{name}_")]
        elif name in given or (parameter.default is not inspect.Parameter.empty and parameter.kind in _NAMED):
            order.append(name)
    return [*order, *(name for name in others if name not in order)]


def _default(parameter: inspect.Parameter | None) -> Any:
    """A parameter's default, or None for one that source text does not have."""
    default = None if parameter is None else parameter.default
    literal = type(default) in (bool, int, str) or (type(default) is float and math.isfinite(default))
    return default if literal else None


def _optional(nodes: Sequence[fx.Node]) -> bool:
    """Whether the last of these arguments has a default, as then all that follow must."""
    return bool(nodes) and bool(nodes[-1].args)


def _put_first(graph: fx.Graph, nodes: Sequence[fx.Node]) -> None:
    first = next(iter(graph.nodes))
    for node in reversed(nodes):
        if node is not first:
            first.prepend(node)
            first = node


def _call(model: fx.GraphModule, name: str, module: nn.Module, after: fx.Node, *args: Any) -> fx.Node:
    """A call of a new module, behind a node."""
    while hasattr(model, name):
        name += "_"
    model.add_module(name, module.eval())
    with model.graph.inserting_after(after):
        return model.graph.call_module(name, args)


def loss_of(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Loss | None:
    """What the `labels` of a model do to its outputs, if it is to add one of `LOSSES`.

    The model is run on the example with random labels, and its loss compared with each.

    Args:
        model: the original, in evaluation mode here.
        args: what it is called with, without labels.
        kwargs: the same by name.
    """
    parameter = inspect.signature(model.forward).parameters.get(LABELS)
    if parameter is None or parameter.default is not None:
        return None
    with evaluating(model), torch.no_grad(), _same_config(model):
        logits = _logits(model(*copied(args), **copied(kwargs)))
        if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.ndim < 2 or not logits.numel():
            return None
        random = torch.Generator().manual_seed(0)
        numbers = torch.randint(max(2, logits.shape[-1]), logits.shape[:-1], generator=random)
        if numbers.shape[-1] > 2 and numbers.ndim > 1:
            numbers[..., -1] = -100  # a token that does not count
        floats = torch.rand(logits.shape, generator=random).to(logits.dtype)
        found: dict[str, Any] = {"integer": None, "floating": None}
        single = False
        for form, labels in (("integer", numbers), ("floating", floats)):
            with _same_config(model):
                try:
                    output = model(*copied(args), **copied(kwargs), labels=labels.to(logits.device))
                    loss, same = _loss(output), torch.allclose(_logits(output), logits, rtol=1e-4, atol=1e-5)
                except Exception:  # whatever a model does with labels that it does not take
                    continue
            if not isinstance(loss, Tensor) or loss.ndim or not same:
                continue
            single = single or loss.dtype != logits.dtype
            found[form] = next((kind for kind in LOSSES if _is(kind, loss, logits, labels.to(logits.device))), None)
    return Loss(**found, single=single) if any(found.values()) else None


def _loss(output: Any) -> Any:
    if isinstance(output, Mapping):
        return output.get("loss")
    return getattr(output, "loss", None)


def _is(kind: str, loss: Tensor, logits: Tensor, labels: Tensor) -> bool:
    try:
        expected = LOSSES[kind](logits.to(loss.dtype), labels)
    except (RuntimeError, ValueError, IndexError):
        return False
    return torch.allclose(expected.to(loss.dtype), loss, rtol=max(1e-4, 4 * torch.finfo(logits.dtype).eps), atol=0)


@contextmanager
def _same_config(model: nn.Module) -> Iterator[None]:
    """The block, and a model's `config` as it was: the first labels decide of what problem it is, in transformers."""
    config = getattr(model, "config", None)
    before = dict(vars(config)) if hasattr(config, "__dict__") else None
    try:
        yield
    finally:
        if before is not None:
            vars(config).clear()
            vars(config).update(before)
