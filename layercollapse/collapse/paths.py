"""The rule that merges where paths meet in a sum, and the choice of which of their tensors stay.

A region is what one tensor, its root, is made of by affine layers, scales and sums that nothing else needs. Keep some
of its tensors: what lies between these contracts into one layer for each pair of them, the sum over the paths between
of what the layers on a path compose to, and an identity is a 1×1 kernel:

    y = w(x) + B(A(x))  is  (w + B A)(x), though B A alone may be more work than B and A

Every tensor t has ways to be written as a sum of layers over tensors before it; the best of them, by multiply-
accumulates, is found from the inputs down:

    best(t) = min over the ways of t of cost(layers) + Σ best(tensors of the region that they read)

which is the least over all choices of tensors to keep, where no tensor is read twice within the region; of those that
are, each in turn is taken as kept and as not. A tensor above one of these, which two that stay would then read, is
counted twice; regions of more than `_LARGEST` layers, and `_TWICE` such tensors, are cut into smaller ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import fx

from layercollapse.collapse.chain import merge_in_sequence
from layercollapse.collapse.cost import macs
from layercollapse.collapse.fold import after, before
from layercollapse.collapse.ir import Affine, Net, Scale, operands, shape, source
from layercollapse.collapse.merge import add, compose, diagonal, mergeable
from layercollapse.collapse.weights import held

aten = torch.ops.aten

# Layers of one region, tensors of it that are read twice, ways to write one tensor, and terms over one tensor: what is
# looked at grows with the powers of these.
_LARGEST, _TWICE, _WAYS, _TERMS = 12, 3, 32, 4


@dataclass(frozen=True)
class _Term:
    """What a tensor is to another that it is a term of.

    Attributes:
        read: the tensor.
        op: what it is multiplied by; None for itself.
        last: the node of the layer, or scale, that the record takes the place of.
    """

    read: fx.Node
    op: Affine | Scale | None
    last: fx.Node


_Terms: TypeAlias = tuple[_Term, ...]
# Of multiply-accumulates, then layers, then sums and scales, in one integer.
_LAYER, _MAC = 1 << 12, 1 << 24


def merge_paths(net: Net) -> bool:
    """The affine layers of a region with sums become those that take the fewest multiply-accumulates."""
    changed = False
    seen: set[fx.Node] = set()
    for node in reversed(list(net.graph.nodes)):
        if node in seen or not _linear(net, node):
            continue
        inside = _inside(net, node)
        seen |= inside
        if any(operands(part) for part in inside):
            changed |= _Region(net, node, inside).rewrite()
    return changed


def _linear(net: Net, node: fx.Node) -> bool:
    return isinstance(net.op(node), Affine | Scale) or operands(node) is not None


def _inside(net: Net, root: fx.Node) -> set[fx.Node]:
    """The root, and what only it needs, through affine layers, scales and sums."""
    inside, waiting, layers, twice = {root}, list(root.all_input_nodes), 0, 0
    while waiting:
        node = waiting.pop(0)
        if node in inside or not inside.issuperset(node.users) or not _linear(net, node):
            continue
        layers += net.affine(node) is not None
        twice += len(node.users) > 1
        if layers > _LARGEST or twice > _TWICE:
            break
        inside.add(node)
        waiting += node.all_input_nodes
    return inside


class _Region:
    """A part of a net, and the ways to write it.

    Args:
        net: the net.
        root: the tensor that others read.
        inside: its nodes, the root among them.
    """

    def __init__(self, net: Net, root: fx.Node, inside: set[fx.Node]) -> None:
        self._net, self._root, self._inside = net, root, inside
        # With what they are made of: while that is held, nothing else has its id.
        self._composed: dict[tuple[int, fx.Node, bool], tuple[object, Affine | Scale | None]] = {}
        self._sums: dict[tuple[int, ...], tuple[object, Affine | None]] = {}

    def rewrite(self) -> bool:
        """Write it in the best way; False if that is as it is."""
        twice = [node for node in self._inside if len(node.users) > 1]
        found = list[tuple[int, int, _Choice]]()
        for count in range(len(twice) + 1):
            for stays in itertools.combinations(twice, count):
                choice = _Choice(self, frozenset(stays))
                cost = sum(choice.best(node)[0] for node in (self._root, *stays))
                found.append((cost, len(found), choice))
        cost, _, choice = min(found)
        if cost >= self._cost():
            return False
        self._write(self._root, choice, {}, set())
        self._net.sweep()
        return True

    def _cost(self) -> int:
        """What it costs as it is."""
        ops = [(node, self._net.affine(node)) for node in self._inside]
        layers = [macs(op, shape(node)) for node, op in ops if op is not None]
        return _MAC * sum(layers) + _LAYER * len(layers) + len(ops) - len(layers)

    def ways(self, node: fx.Node, choice: _Choice) -> Iterator[_Terms]:
        """The ways to write a node, each as the terms of a sum."""
        pair, op = operands(node), self._net.op(node)
        if pair is not None:
            for left, right in itertools.product(*(self._term(x, node, choice) for x in pair)):
                yield (*left, *right)
            return
        assert isinstance(op, Affine | Scale)
        read = source(node)
        yield (_Term(read, op, node),)
        for terms in choice.ways(read) if choice.may_go(read) else ():
            new = [self._through(term, op, node, index == 0) for index, term in enumerate(terms)]
            if None not in new:
                yield tuple(term for term in new if term is not None)

    def _term(self, node: fx.Node, total: fx.Node, choice: _Choice) -> list[_Terms]:
        return [*(choice.ways(node) if choice.may_go(node) else ()), (_Term(node, None, total),)]

    def may_go(self, node: fx.Node) -> bool:
        return node in self._inside and node is not self._root

    def _through(self, term: _Term, op: Affine | Scale, node: fx.Node, adds: bool) -> _Term | None:
        """A term of what a layer reads as a term of what it makes; one of all adds what the layer does."""
        key = id(term.op), node, adds
        if key not in self._composed:
            self._composed[key] = term.op, self._follow(term, op if adds else _bare(op), node)
        made = self._composed[key][1]
        return None if made is None else _Term(term.read, made, node)

    def _follow(self, term: _Term, op: Affine | Scale, node: fx.Node) -> Affine | Scale | None:
        first = term.op
        if first is None:
            return op
        if isinstance(op, Scale):
            made = after(first, op)
            return made if isinstance(made, Affine | Scale) else None
        if first.channel_dim != op.channel_dim:
            return None
        if isinstance(first, Scale):
            return before(first, op)
        if len(first.window.kernel) != len(op.window.kernel) or not mergeable(first, op):
            return None
        return compose(first, op) if self._net.permits(merge_in_sequence, term.last, node) else None

    def joined(self, terms: _Terms, node: fx.Node) -> tuple[int, _Terms]:
        """The fewest layers that do what all terms do, and their cost."""
        reads = dict.fromkeys(term.read for term in terms)
        over = [self._fewest([term for term in terms if term.read is read], node) for read in reads]
        made = tuple(term for _, some in over for term in some)
        return sum(cost for cost, _ in over) + len(made) - 1, made

    def _fewest(self, terms: list[_Term], node: fx.Node) -> tuple[int, list[_Term]]:
        """The best of the ways to add some of the terms over one tensor and leave others."""
        found = list[tuple[int, int, list[_Term]]]()
        for groups in _partitions(terms[:_TERMS]):
            made = [self._added(group, node) for group in groups]
            if None not in made:
                some = [term for term in made if term is not None]
                found.append((sum(self._price(term, node) for term in some) + len(some), len(found), some))
        _, _, best = min(found)
        for term in terms[_TERMS:]:
            best = self._fewest([*best, term], node)[1] if len(best) < _TERMS else [*best, term]
        return sum(self._price(term, node) for term in best), best

    def _price(self, term: _Term, node: fx.Node) -> int:
        if isinstance(term.op, Affine):
            return _MAC * macs(term.op, shape(node)) + _LAYER
        return int(term.op is not None)

    def _added(self, terms: list[_Term], node: fx.Node) -> _Term | None:
        """One layer that does what the terms do together."""
        if len(terms) == 1:
            return terms[0]
        order = sorted(terms, key=lambda term: not isinstance(term.op, Affine))
        first, *others = order
        if not all(self._net.permits(merge_paths, first.last, term.last, node) for term in others):
            return None
        key = tuple(id(term.op) for term in order)
        if key not in self._sums:
            self._sums[key] = order, self._sum([term.op for term in order])
        total = self._sums[key][1]
        return None if total is None else replace(first, op=total)

    def _sum(self, ops: list[Affine | Scale | None]) -> Affine | None:
        total = ops[0] if isinstance(ops[0], Affine) else None
        for op in ops[1:]:
            if total is None:
                return None
            other = op if isinstance(op, Affine) else diagonal(total, op)
            total = None if other is None else add(total, other)
        return total

    def _write(self, node: fx.Node, choice: _Choice, new: dict[fx.Node, fx.Node], used: set[fx.Node]) -> fx.Node:
        """Write a node, and what it reads of the region, as chosen; returns what gives its values then."""
        if node in new:
            return new[node]
        net, size, users = self._net, shape(node), list(node.users)
        terms = choice.best(node)[1]
        reads = [self._write(term.read, choice, new, used) if self.may_go(term.read) else term.read for term in terms]
        made, last = list[fx.Node](), node
        for term, read in zip(terms, reads, strict=True):
            if term.op is None:
                made.append(read)
                continue
            if term.last in used:
                last = net.insert(str(term.last.target), term.op, read, after=last)
                made.append(last)
            else:
                net.set(term.last, term.op)
                term.last.args = (read,)
                made.append(term.last)
            used.add(made[-1])
            made[-1].meta["shape"] = size
        total = made[0]
        for part in made[1:]:
            with net.graph.inserting_after(last):
                total = last = net.graph.call_function(aten.add.Tensor, (total, part))
            total.meta["shape"] = size
        if node is self._root and total is not node:
            for user in users:
                user.replace_input_with(node, total)
        new[node] = total
        return total


class _Choice:
    """The best way to write every tensor of a region, where some of them stay.

    Args:
        region: the region.
        stays: of its tensors that are read more than once, those that stay.
    """

    def __init__(self, region: _Region, stays: frozenset[fx.Node]) -> None:
        self._region, self._stays = region, stays
        self._ways: dict[fx.Node, list[_Terms]] = {}
        self._best: dict[fx.Node, tuple[int, _Terms]] = {}

    def may_go(self, node: fx.Node) -> bool:
        """Whether a tensor need not stay."""
        return self._region.may_go(node) and node not in self._stays

    def ways(self, node: fx.Node) -> list[_Terms]:
        """The ways to write a node, the best of them where there are many."""
        if node not in self._ways:
            ways = list(self._region.ways(node, self))
            self._ways[node] = ways if len(ways) <= _WAYS else sorted(ways, key=lambda w: self._cost(w, node))[:_WAYS]
        return self._ways[node]

    def best(self, node: fx.Node) -> tuple[int, _Terms]:
        """The cost of the best way to write a node, and its terms."""
        if node not in self._best:
            way = min(self.ways(node), key=lambda way: self._cost(way, node))
            self._best[node] = self._cost(way, node), self._region.joined(way, node)[1]
        return self._best[node]

    def _cost(self, terms: _Terms, node: fx.Node) -> int:
        """Of a node written as a sum of terms, and of the tensors that it reads; those that stay are counted once."""
        above = {term.read for term in terms if self.may_go(term.read)}
        return self._region.joined(terms, node)[0] + sum(self.best(read)[0] for read in above)


def _bare(op: Affine | Scale) -> Affine | Scale:
    """A record that adds nothing."""
    if isinstance(op, Scale):
        return replace(op, shift=torch.zeros_like(op.shift))
    return replace(op, weight=held(op), bias=torch.zeros_like(op.bias), plane=None, source=None)


def _partitions(items: list[_Term]) -> Iterator[list[list[_Term]]]:
    """All ways to deal items out to groups."""
    if not items:
        yield []
        return
    for groups in _partitions(items[1:]):
        yield [items[:1], *groups]
        for index, group in enumerate(groups):
            yield [*groups[:index], [items[0], *group], *groups[index + 1 :]]
