"""The linear regions of a net: what lies between rectifiers that stay, and other layers in its place.

A region is what one tensor, its root, is made of by affine layers, scales, sums and average poolings that nothing else
needs. Of each tensor that it reads it has a *window*: the kernel, stride and padding of all paths to the root together.
A convolution with a smaller kernel in the middle of that window has outputs of the same size, for inputs of every size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from layercollapse.compiler.ir.graph import Net, operands, shape
from layercollapse.compiler.ir.records import Affine, ChannelAffine, ConvGeometry
from layercollapse.compiler.passes.pooling import average_window
from layercollapse.graph.aten import computed
from layercollapse.graph.meta import DTYPE, OPEN, SHAPE, inherit

aten = torch.ops.aten

# The kernels that are tried have so many positions more along every axis than the smallest.
_WIDER = (0, 2, 4)
# Tensors that all paths of a region go through, from one end of a segment to the other.
_LONGEST = 4

Windows = Mapping[fx.Node, ConvGeometry]


@dataclass(frozen=True, eq=False)
class LinearRegion:
    """A part of a net that computes a linear function, but for constants.

    Attributes:
        root: the tensor that others read.
        nodes: its nodes in the order of the graph, the root last.
        windows: tensor that it reads -> its window, of empty geometry for linear layers; None where no one stride and
            size are those of all paths.
    """

    root: fx.Node
    nodes: tuple[fx.Node, ...]
    windows: Windows | None

    def layers(self, net: Net) -> list[tuple[fx.Node, Affine]]:
        """Its affine layers."""
        return [(node, op) for node in self.nodes if (op := net.affine(node)) is not None]


@dataclass(frozen=True, eq=False)
class Replacement:
    """The layers that take the place of a region: their sum, through one more layer if there is one.

    Attributes:
        region: what goes.
        layers: a tensor that the region reads, and the layer on it.
        last: the layer on their sum, or None.
    """

    region: LinearRegion
    layers: Sequence[tuple[fx.Node, Affine]]
    last: Affine | None = None


def linear_regions(net: Net) -> list[LinearRegion]:
    """The regions with two affine layers or more, in the order of the graph."""
    constant = computed(net.graph, {node.name for node in net.graph.nodes if node.op == "get_attr"})
    regions, seen = list[LinearRegion](), set[fx.Node]()
    for root in reversed(list(net.graph.nodes)):
        if root in seen or not _linear(net, root, constant):
            continue
        inside = _inside(net, root, constant)
        seen |= inside
        nodes = tuple(node for node in net.graph.nodes if node in inside)
        layers = [op for node in nodes if (op := net.affine(node)) is not None]
        if len(layers) > 1 and len({op.dtype for op in layers}) == 1:
            regions.append(LinearRegion(root, nodes, _windows(net, nodes)))
    return regions[::-1]


def segments(net: Net, region: LinearRegion) -> dict[tuple[int, int], LinearRegion]:
    """The parts of a region between tensors that all its paths go through.

    Returns:
        First and last of these tensors, counted from the start of the region, 0, -> the part between them, with two
        affine layers or more; without the whole.
    """
    layers = {node for node, _ in region.layers(net)}
    ends: dict[frozenset[fx.Node], tuple[fx.Node, set[fx.Node]]] = {}
    inside = set(region.nodes)
    for node in region.nodes:
        needed = _needed(node, inside)
        rest = inside - needed
        through = all(read in rest or read is node for user in rest for read in user.all_input_nodes)
        if through and needed & layers:
            ends[frozenset(needed & layers)] = node, needed  # of several behind one layer, the last
    parts = {}
    cuts = list(ends.values())
    for last, (end, needed) in enumerate(cuts, 1):
        for first in range(max(0, last - _LONGEST), last):
            between = needed - (cuts[first - 1][1] if first else set())
            nodes = tuple(node for node in region.nodes if node in between)
            if len(layers & between) > 1 and len(nodes) < len(region.nodes):
                parts[first, last] = LinearRegion(end, nodes, _windows(net, nodes))
    return parts


def _needed(node: fx.Node, inside: Collection[fx.Node]) -> set[fx.Node]:
    """A node, and what it is made of."""
    needed, waiting = set[fx.Node](), [node]
    while waiting:
        some = waiting.pop()
        if some in inside and some not in needed:
            needed.add(some)
            waiting += some.all_input_nodes
    return needed


def _linear(net: Net, node: fx.Node, constant: Collection[fx.Node]) -> bool:
    if node in constant or SHAPE.get(node) is None:
        return False
    pair = operands(node)
    if pair is not None:
        return not any(x in constant for x in pair)
    return _dims(net, node) is not None


def _dims(net: Net, node: fx.Node) -> int | None:
    """The spatial dimensions of what an affine layer, a scale or a pooling works on; None of anything else."""
    op = net.op(node)
    if isinstance(op, Affine):
        return None if op.geometry.transposed else len(op.geometry.kernel)
    if isinstance(op, ChannelAffine):
        return len(shape(node)) - 2 if op.channel_dim == 1 else 0
    window = average_window(node)
    return None if window is None else len(window.kernel)


def _inside(net: Net, root: fx.Node, constant: Collection[fx.Node]) -> set[fx.Node]:
    """The root, and what only it needs, through nodes that are linear in the same spatial dimensions."""
    inside, waiting, dims = set[fx.Node](), [root], _dims(net, root)
    while waiting:
        node = waiting.pop()
        if node in inside or not _linear(net, node, constant):
            continue
        own = _dims(net, node)
        if (node is root or inside.issuperset(node.users)) and (own is None or dims is None or own == dims):
            dims = own if dims is None else dims
            inside.add(node)
            waiting += node.all_input_nodes
    return inside


def _windows(net: Net, nodes: Sequence[fx.Node]) -> Windows | None:
    """The window of every tensor that the nodes read and are not; None where paths do not agree."""
    dims = next(len(op.geometry.kernel) for node in nodes if (op := net.affine(node)) is not None)
    windows = {nodes[-1]: ConvGeometry((1,) * dims, (1,) * dims, (0,) * dims, (1,) * dims)}
    for node in reversed(nodes):
        op, through = net.affine(node), windows[node]
        own = average_window(node) if op is None else op.geometry
        if own is not None:
            through = _in_sequence(own, through)
        for read in node.all_input_nodes:
            both = _wider(windows.get(read, through), through)
            if both is None:
                return None
            windows[read] = both
    inside = set(nodes)
    return {node: window for node, window in windows.items() if node not in inside}


def _in_sequence(one: ConvGeometry, two: ConvGeometry) -> ConvGeometry:
    """The window of two layers in sequence, without dilation."""
    parts = list(zip(one.extent, one.stride, one.padding, two.kernel, two.stride, two.padding, strict=True))
    return ConvGeometry(
        kernel=tuple(k1 + (k2 - 1) * s1 for k1, s1, _, k2, _, _ in parts),
        stride=tuple(s1 * s2 for _, s1, _, _, s2, _ in parts),
        padding=tuple(p1 + p2 * s1 for _, s1, p1, _, _, p2 in parts),
        dilation=two.dilation,
    )


def _wider(one: ConvGeometry, two: ConvGeometry) -> ConvGeometry | None:
    """The larger of two windows with the same middle, and outputs of one size for inputs of every size; or None."""
    if one.stride != two.stride:
        return None
    sides = [
        (2 * a - k, 2 * b - m) for a, k, b, m in zip(one.padding, one.kernel, two.padding, two.kernel, strict=True)
    ]
    if any(a != b for a, b in sides):
        return None
    kernel = tuple(map(max, one.kernel, two.kernel))
    return replace(one, kernel=kernel, padding=tuple(map(max, one.padding, two.padding)))


def narrower(windows: Windows) -> list[Windows]:
    """The windows with smaller kernels, of 1, 3 and 5 positions along an axis, or 2, 4 and 6: the smallest first.

    Without those that would have to leave out positions at the border, and none larger than it was.
    """
    choices = list[Windows]()
    for wider in _WIDER:
        narrowed = {node: _narrowed(window, wider) for node, window in windows.items()}
        smaller = {node: window for node, window in narrowed.items() if window is not None}
        if len(smaller) == len(windows) and smaller not in choices:
            choices.append(smaller)
    return choices


def _narrowed(window: ConvGeometry, wider: int) -> ConvGeometry | None:
    kernel = tuple(min(k, 2 - k % 2 + wider) for k in window.kernel)
    padding = tuple(p - (k - small) // 2 for p, k, small in zip(window.padding, window.kernel, kernel, strict=True))
    return None if any(p < 0 for p in padding) else replace(window, kernel=kernel, padding=padding)


def rewritten(net: Net, replacements: Iterable[Replacement]) -> Net:
    """The net with other layers in the place of regions.

    Args:
        net: with the nodes of the regions, under their names; it stays as it is.
        replacements: in the order of the graph.
    """
    net = net.copy()
    nodes = {node.name: node for node in net.graph.nodes}
    for one in replacements:
        root, name = nodes[one.region.root.name], ""
        for node in one.region.nodes:
            old = nodes[node.name]
            if old.op == "call_module":
                name = str(old.target) if net.affine(old) is not None else name
                # What takes its place has the name.
                net.ops[f"{old.target} before"] = net.ops.pop(str(old.target))
                old.target = f"{old.target} before"
        total, size = root, shape(root)
        dim = one.layers[0][1].channel_dim
        parts = list[fx.Node]()
        for read, op in one.layers:
            total = net.insert(name, op, nodes[read.name], after=total)
            SHAPE[total] = _with_channels(size, dim, op.outputs)
            parts.append(total)
        total = parts[0]
        for part in parts[1:]:
            with net.graph.inserting_after(parts[-1] if total is parts[0] else total):
                both = net.graph.call_function(aten.add.Tensor, (total, part))
            SHAPE[both] = shape(part)
            total = both
        if one.last is not None:
            total = net.insert(name, one.last, total, after=total)
            SHAPE[total] = size
        inherit(total, root, DTYPE, OPEN)
        root.replace_all_uses_with(total)
        nodes[root.name] = total
        net.sweep()
    return net


def _with_channels(size: tuple[int, ...], dim: int, channels: int) -> tuple[int, ...]:
    sizes = list(size)
    sizes[dim] = channels
    return tuple(sizes)
