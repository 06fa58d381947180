"""The pass that merges affine layers, in sequence and where paths meet in a sum.

A region is what one tensor, its root, is made of by affine layers, scales and sums that nothing else needs: a chain of
layers, or paths that part and meet. `contract_search` finds the best way to write it; here it is found, and written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx

from layercollapse.compiler.ir.graph import Net, operands, shape
from layercollapse.compiler.ir.records import Affine, ChannelAffine
from layercollapse.compiler.passes.context import PassContext
from layercollapse.compiler.passes.contract_search import Search, Terms
from layercollapse.graph.meta import SHAPE

aten = torch.ops.aten


def contract(net: Net, context: PassContext) -> bool:
    """The affine layers of a region become those that take the fewest multiply-accumulates.

    Where `Group.THRIFT` does not act, they become the fewest layers.
    """
    changed = False
    for root, region in _regions(net):
        key = [(part.name, net.op(part), [x.name for x in part.all_input_nodes], shape(part)) for part in region]
        if root.name in context.examined and _same(context.examined[root.name], key):
            continue
        search = Search(net, context, root, region)
        best = search.run()
        if best.cost >= search.cost:
            context.examined[root.name] = key
            continue
        _write(net, context, root, best.written())
        net.sweep()
        changed = True
    return changed


def _same(one: list[Any], two: list[Any]) -> bool:
    """Whether a region is what it was: the same records between the same tensors."""
    return len(one) == len(two) and all(
        a[1] is b[1] and (a[0], *a[2:]) == (b[0], *b[2:]) for a, b in zip(one, two, strict=True)
    )


def _regions(net: Net) -> Iterator[tuple[fx.Node, list[fx.Node]]]:
    """The regions with a sum or two layers, each as its root and its nodes in the order of the graph; the last first.

    The net may change meanwhile, within the region that was given last.
    """
    seen, place = set[fx.Node](), {node: index for index, node in enumerate(net.graph.nodes)}
    for root in reversed(list(place)):
        if root in seen or not _linear(net, root):
            continue
        inside = _inside(net, root)
        seen |= inside
        if any(operands(node) for node in inside) or sum(net.affine(node) is not None for node in inside) > 1:
            yield root, sorted(inside, key=place.__getitem__)


def _linear(net: Net, node: fx.Node) -> bool:
    return isinstance(net.op(node), Affine | ChannelAffine) or operands(node) is not None


def _inside(net: Net, root: fx.Node) -> set[fx.Node]:
    """The root, and what only it needs, through affine layers, scales and sums."""
    inside, waiting = {root}, list(root.all_input_nodes)
    while waiting:
        node = waiting.pop()
        if node not in inside and inside.issuperset(node.users) and _linear(net, node):
            inside.add(node)
            waiting += node.all_input_nodes
    return inside


def _write(net: Net, context: PassContext, root: fx.Node, tensors: Mapping[fx.Node, Terms]) -> None:
    """Write the tensors of a region that stay, each as the sum of its terms; those come first that others read."""
    new, used = dict[fx.Node, fx.Node](), set[fx.Node]()
    for node, terms in tensors.items():
        size, users, last = shape(node), list(node.users), node
        parts = list[fx.Node]()
        for term in terms:
            context.applied |= term.groups
            context.repadded += [(name, str(term.last.target)) for name in term.moved]
            read = new.get(term.read, term.read)
            if term.op is None:
                parts.append(read)
                continue
            if term.last in used:
                last = net.insert(str(term.last.target), term.op, read, after=last)
                parts.append(last)
            else:
                net.set(term.last, term.op)
                term.last.args = (read,)
                parts.append(term.last)
            used.add(parts[-1])
            SHAPE[parts[-1]] = size
        total = parts[0]
        for part in parts[1:]:
            with net.graph.inserting_after(last):
                total = last = net.graph.call_function(aten.add.Tensor, (total, part))
            SHAPE[total] = size
        if node is root and total is not node:
            for user in users:
                user.replace_input_with(node, total)
        new[node] = total
