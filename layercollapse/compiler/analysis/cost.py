"""What a model costs: depth, parameters, multiplications."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from layercollapse._util.modes import evaluating
from layercollapse.compiler.ir.graph import Net
from layercollapse.compiler.ir.records import Affine, ConstantMap, ConvGeometry
from layercollapse.graph.aten import computed, does, has_weight
from layercollapse.graph.capture import Capture
from layercollapse.graph.export import call_arguments, copied
from layercollapse.graph.operations import Does


@dataclass(frozen=True)
class Summary:
    """The size of a model.

    Attributes:
        depth: the largest number of affine layers with weights on any path from input to output.
        parameters: number of parameters, counted once where they are shared; buffers are not counted, nor are those
            that a layer has as its weights.
        macs: multiply-accumulates of one forward pass on the example inputs.
    """

    depth: int
    parameters: int
    macs: int


def macs(op: Affine, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of a layer for one output of a shape (N, O, *spatial) or (N, *, O), per sample.

    A border weight counts as one more input channel and its addition: that is how it is emitted.
    """
    positions = math.prod(_reads(op.geometry, shape[2:])) if op.geometry.kernel else math.prod(shape[1:-1])
    border = 0 if op.border_weight is None else op.border_weight.numel() + op.outputs
    return (math.prod(op.size) + border) * positions


def _reads(geometry: ConvGeometry, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The positions at which a window is laid on: those of the output, or, transposed, those of the input."""
    if geometry.output_padding is None:
        return sizes
    parts = zip(sizes, geometry.extent, geometry.stride, geometry.padding, geometry.output_padding, strict=True)
    return tuple((size + 2 * p - extent - more) // s + 1 for size, extent, s, p, more in parts)


def summarize(model: nn.Module, example_inputs: Any, depth: int) -> Summary:
    """Parameters and multiply-accumulates of a model; the depth comes from its graph.

    Convolutions, matrix products and attention are counted, by torch's own counter (one multiply-accumulate is two
    of its floating-point operations).
    """
    args, kwargs = call_arguments(example_inputs)
    counter = FlopCounterMode(display=False)
    # With gradients: the counter follows modules by them, and stops at a parameter that only changes shape without.
    try:
        with evaluating(model), torch.enable_grad(), counter:
            model(*copied(args), **copied(kwargs))
    except RuntimeError:  # of an operation that has no gradient (a part of a complex tensor written)
        with evaluating(model), torch.no_grad(), counter:
            model(*copied(args), **copied(kwargs))
    return Summary(depth, sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)


def captured_depth(capture: Capture) -> int:
    """Depth of a model as captured."""
    constant = computed(capture.graph, capture.tensors)
    return _longest(
        capture.graph,
        weighs=lambda node: has_weight(node, constant),
        starts=lambda node: node.name in capture.inputs,
        carries=lambda node: does(node) is not Does.SIZE,
    )


def net_depth(net: Net) -> int:
    """Depth of a net."""
    constant = computed(net.graph, {node.name for node in net.graph.nodes if node.op == "get_attr"})
    return _longest(
        net.graph,
        weighs=lambda node: net.affine(node) is not None or has_weight(node, constant),
        starts=lambda node: node.op == "placeholder",
        carries=lambda node: not isinstance(net.op(node), ConstantMap) and does(node) is not Does.SIZE,
    )


def _longest(
    graph: fx.Graph,
    weighs: Callable[[fx.Node], bool],
    starts: Callable[[fx.Node], bool],
    carries: Callable[[fx.Node], bool],
) -> int:
    """Most nodes that weigh on any path that begins at a start and goes through nodes that carry data."""
    depth: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if starts(node):
            depth[node] = 0
        elif node.op != "placeholder" and carries(node):
            above = [depth[source] for source in node.all_input_nodes if source in depth]
            if above:
                depth[node] = max(above) + weighs(node)
        if node.op == "output":
            return depth.get(node, 0)
    raise AssertionError("a graph ends with its output")
