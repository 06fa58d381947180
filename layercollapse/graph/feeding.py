"""Which weights feed a rectifier site, and why none do.

A layer feeds a site if its weights decide what the rectifier reads: with all of them zero it gives one value per
channel, and so does what lies between, so that the rectifier is linear. Pruning them leads there. Between the two may
lie sums, changes of shape, parts, pooling, interpolation, norms (of a constant they make a constant) and functions of
single entries: what has a row in `operations`. Another layer ends the walk, and so does a rectifier.

Of a product with a gate (a sigmoid, a softmax: ``a * sigmoid(b)``, attention) only the layers of the other factor feed.
Without them the product is zero, or of one sign; without those of the gate it is that factor times a number, whose sign
changes as before: they would be pruned for nothing. Where every factor is a gate, all feed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from layercollapse.graph.aten import bends, does, has_weight, layer_of, module_path, packet
from layercollapse.graph.meta import VALUE
from layercollapse.graph.operations import Does

aten = torch.ops.aten

_PRODUCTS = (Does.PRODUCT, Does.MIX, Does.LAYER)  # a layer without a weight is a product of two tensors


def feeding(
    node: fx.Node, tensors: Mapping[str, str], parameters: Collection[str], constant: Collection[fx.Node]
) -> tuple[tuple[str, ...], str]:
    """The names of the weights that feed a rectifier's call; and if there are none, what lies before it instead.

    Args:
        node: the call.
        tensors: name of a placeholder -> name of the model's tensor.
        parameters: the names of tensors that are parameters: a layer with a fixed filter is passed.
        constant: the nodes that follow from these tensors, see `computed`.
    """
    stops: dict[str, None] = {}

    def above(source: fx.Node) -> Iterable[fx.Node]:
        if (stop := _stop(source, constant)) is not None:
            stops[stop] = None
            return ()
        return _deciding(source, tensors, constant)

    layers = reaching(node, tensors, parameters, above)
    return layers, "" if layers else ", ".join(stops) or "nothing that depends on the input"


def reaching(
    node: fx.Node,
    tensors: Mapping[str, str],
    parameters: Collection[str],
    above: Callable[[fx.Node], Iterable[fx.Node]],
) -> tuple[str, ...]:
    """Names of the weights met first on the way up from a node; `above` says which inputs of other nodes to follow."""
    layers: dict[str, None] = {}
    seen: set[fx.Node] = set()
    stack = _data(node, tensors)[::-1]
    while stack:
        source = stack.pop()
        if source in seen:
            continue
        seen.add(source)
        layer = layer_of(source, tensors)
        if layer is not None and layer[1] in parameters:
            layers[layer[1]] = None
        elif layer is not None:
            stack.append(layer[0])
        else:
            stack.extend(list(above(source))[::-1])
    return tuple(layers)


def _data(node: fx.Node, tensors: Mapping[str, str]) -> list[fx.Node]:
    """The inputs of a node that the data decide, and whose values it computes with: no indices, conditions or sizes."""
    return [x for x in node.all_input_nodes if x.name not in tensors and _is_data(VALUE.get(x))]


def _is_data(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_data, value))
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _stop(node: fx.Node, constant: Collection[fx.Node]) -> str | None:
    """What a node is that ends a walk, or None."""
    if node.op != "call_function":
        return f"the model's input {node.name}"
    if bends(node):
        return "another rectifier"
    if has_weight(node, constant):
        return f"a layer that computes its weight in the forward pass ({module_path(node) or node.name})"
    name = getattr(packet(node), "__name__", str(node.target))
    if does(node) is Does.OTHER and node.target is not operator.getitem:
        return f"{name}, which is not followed"
    return f"a table of rows ({name})" if does(node) is Does.TABLE else None


def _deciding(node: fx.Node, tensors: Mapping[str, str], constant: Collection[fx.Node]) -> list[fx.Node]:
    """The inputs of a node without a weight of its own that feed what it feeds; see the module."""
    inputs = _data(node, tensors)
    if packet(node) is aten.scaled_dot_product_attention:
        return [x for x in inputs if x is node.args[2]]
    if does(node) is Does.SIZE:
        return []
    if does(node) in _PRODUCTS and len(inputs) > 1:
        return [x for x in inputs if not _is_gate(x, tensors, constant)] or inputs
    return inputs


def _is_gate(node: fx.Node, tensors: Mapping[str, str], constant: Collection[fx.Node]) -> bool:
    """Whether a tensor is a gate: also moved, repeated, or in arithmetic with numbers and tensors of the model."""
    while True:
        inputs = _data(node, tensors)
        if does(node) in (Does.GATE, Does.SHARE):
            return True
        if len(inputs) != 1 or layer_of(node, tensors) is not None or _stop(node, constant) is not None:
            return False
        node = inputs[0]
