"""The pass that merges where paths meet in a sum, and the choice of which of their tensors stay.

A region is what one tensor, its root, is made of by affine layers, scales and sums that nothing else needs. Keep some
of its tensors: what lies between these contracts into one layer for each pair of them, the sum over the paths between
of what the layers on a path compose to, and an identity is a 1×1 kernel:

    y = w(x) + B(A(x))  is  (w + B A)(x), though B A alone may be more work than B and A

The choice with the fewest multiply-accumulates is found by dynamic programming over the tensors, from the inputs down.
A state says of every tensor that is still to be read what it is a sum of, each term a layer over a tensor that stays,
and what the tensors that stay have cost. A layer, or a sum, reads a tensor as it stands, which then stays, or each of
its terms. Nothing is computed for that but sizes (see `weights.Deferred`). What bounds the work:

  - Terms over one tensor are one term where that is no more work than the largest of them: parallel branches first.
  - Of states that differ in cost alone one goes on.
  - A state goes where another can do as little or less whatever follows (`_Search._replaces`).
  - Of what is left go on, at every tensor, the cheapest: one for every node of the region, and a few.

So the work grows with the cube of the region's size at most, and is linear for blocks in sequence.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import fx

from layercollapse.compiler.analysis.cost import macs
from layercollapse.compiler.ir.algebra import add, compose, covers, diagonal, mergeable
from layercollapse.compiler.ir.graph import Net, operands, shape, source
from layercollapse.compiler.ir.records import Affine, ChannelAffine
from layercollapse.compiler.ir.scaling import after, before
from layercollapse.compiler.ir.weights import raw_weight
from layercollapse.compiler.passes.context import Group, PassContext

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class _Term:
    """What a tensor is to another that it is a term of.

    Attributes:
        read: the tensor.
        op: what it is multiplied by; None for itself.
        last: the node of the layer, or scale, that the record takes the place of.
    """

    read: fx.Node
    op: Affine | ChannelAffine | None
    last: fx.Node


_Terms: TypeAlias = tuple[_Term, ...]
# Of multiply-accumulates, then layers, then sums and scales, in one integer.
_LAYER, _MAC = 1 << 12, 1 << 24
# States that go on, beside one for every node of the region.
_WIDTH = 16


def merge_paths(net: Net, context: PassContext) -> bool:
    """The affine layers of a region with sums become those that take the fewest multiply-accumulates."""
    changed = False
    seen: set[fx.Node] = set()
    for node in reversed(list(net.graph.nodes)):
        if node in seen or not _linear(net, node):
            continue
        inside = _inside(net, node)
        seen |= inside
        if not any(operands(part) for part in inside):
            continue
        region = [part for part in net.graph.nodes if part in inside]
        key = [(part.name, net.op(part), [x.name for x in part.all_input_nodes], shape(part)) for part in region]
        if node.name in context.examined and _same(context.examined[node.name], key):
            continue
        if _rewrite(net, context, node, region):
            changed = True
        else:
            context.examined[node.name] = key
    return changed


def _same(one: list[Any], two: list[Any]) -> bool:
    """Whether a region is what it was: the same records between the same tensors."""
    return len(one) == len(two) and all(
        a[1] is b[1] and (a[0], *a[2:]) == (b[0], *b[2:]) for a, b in zip(one, two, strict=True)
    )


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


def _rewrite(net: Net, context: PassContext, root: fx.Node, region: list[fx.Node]) -> bool:
    """Write a region in the best way; False if that is as it is."""
    ops = [(node, net.affine(node)) for node in region]
    layers = [macs(op, shape(node)) for node, op in ops if op is not None]
    now = _MAC * sum(layers) + _LAYER * len(layers) + len(ops) - len(layers)
    best = _Search(net, context, root, region).run()
    if best.cost >= now:
        return False
    _write(net, root, best.written())
    net.sweep()
    return True


@dataclass(frozen=True, eq=False)
class _State:
    """Some tensors of a region written, and what those still to be read are.

    Attributes:
        cost: of the tensors that stay so far.
        terms: tensor that is still to be read -> what it is a sum of.
        stays: of these tensors, those that stay.
        made: the last tensor that was written, and the state before.
    """

    cost: int = 0
    terms: dict[fx.Node, _Terms] = field(default_factory=dict)
    stays: frozenset[fx.Node] = frozenset()
    made: tuple[fx.Node, _Terms, Any] | None = None

    def written(self) -> dict[fx.Node, _Terms]:
        """The tensors that stay, each with what it is a sum of; those that they read come before."""
        found, at = {}, self.made
        while at is not None:
            found[at[0]] = at[1]
            at = at[2]
        return dict(reversed(found.items()))


class _Search:
    """The search for the best way to write a region.

    Args:
        net: the net.
        context: what is permitted where.
        root: the tensor that others read.
        region: its nodes, in the order of the graph.
    """

    def __init__(self, net: Net, context: PassContext, root: fx.Node, region: list[fx.Node]) -> None:
        self._net, self._context, self._root, self._inside = net, context, root, set(region)
        self._order = _depth_first(root, self._inside)
        # With what they are made of: while that is held, nothing else has its id.
        self._composed: dict[tuple[int, fx.Node, bool], tuple[object, Affine | ChannelAffine | None]] = {}
        self._sums: dict[tuple[int, ...], tuple[object, Affine | ChannelAffine | None]] = {}
        self._fewest: dict[tuple[Any, ...], tuple[_Terms, int, _Terms]] = {}

    def run(self) -> _State:
        """The cheapest state in which the root is written."""
        left = {node: sum(user in self._inside for user in node.users) for node in self._order}
        states = [_State()]
        for node in self._order:
            states = [new for state in states for new in self._after(state, node)]
            for read in node.all_input_nodes:
                if read in left:
                    left[read] -= 1
            live = [x for x in states[0].terms if left[x] > 0 or x is self._root]
            states = [replace(s, terms={x: s.terms[x] for x in live}, stays=s.stays.intersection(live)) for s in states]
            states = self._best(states)
        return min((self._keep(state, self._root) for state in states), key=lambda state: state.cost)

    def _after(self, state: _State, node: fx.Node) -> Iterator[_State]:
        """The states that follow when a tensor is known as a sum of terms."""
        pair, op = operands(node), self._net.op(node)
        if pair is not None:
            for first, left in self._ways(state, pair[0], node):
                for second, right in self._ways(first, pair[1], node):
                    yield self._with(second, node, (*left, *right))
            return
        assert isinstance(op, Affine | ChannelAffine)
        for new, terms in self._ways(state, source(node), node):
            made = [self._through(term, op, node, index == 0) for index, term in enumerate(terms)]
            if None not in made:
                yield self._with(new, node, tuple(term for term in made if term is not None))

    def _ways(self, state: _State, read: fx.Node, node: fx.Node) -> Iterator[tuple[_State, _Terms]]:
        """A tensor as a node may read it: as it stands, and as its terms."""
        itself = (_Term(read, None, node),)
        if read not in self._inside:
            yield state, itself
            return
        terms = state.terms[read]
        if len(terms) <= len(self._order):  # a region is never written with more layers than it has nodes
            yield state, terms
        if len(terms) > 1 or terms[0].op is not None:
            yield self._keep(state, read), itself

    def _keep(self, state: _State, node: fx.Node) -> _State:
        """The state in which a tensor stays."""
        if node in state.stays:
            return state
        cost, terms = self._joined(state.terms[node], node)
        return replace(state, cost=state.cost + cost, stays=state.stays | {node}, made=(node, terms, state.made))

    def _with(self, state: _State, node: fx.Node, terms: _Terms) -> _State:
        return replace(state, terms={**state.terms, node: self._simpler(terms, node)})

    def _through(self, term: _Term, op: Affine | ChannelAffine, node: fx.Node, adds: bool) -> _Term | None:
        """A term of what a layer reads as a term of what it makes; one of all adds what the layer does."""
        key = id(term.op), node, adds
        if key not in self._composed:
            self._composed[key] = term.op, self._follow(term, op if adds else _bare(op), node)
        made = self._composed[key][1]
        return None if made is None else _Term(term.read, made, node)

    def _follow(self, term: _Term, op: Affine | ChannelAffine, node: fx.Node) -> Affine | ChannelAffine | None:
        first = term.op
        if first is None:
            return op
        if isinstance(op, ChannelAffine):
            made = after(first, op)
            return made if isinstance(made, Affine | ChannelAffine) else None
        if first.channel_dim != op.channel_dim:
            return None
        if isinstance(first, ChannelAffine):
            return before(first, op)
        if len(first.geometry.kernel) != len(op.geometry.kernel) or not mergeable(first, op):
            return None
        return compose(first, op) if self._context.permits(Group.SEQUENCE, term.last, node) else None

    def _simpler(self, terms: _Terms, node: fx.Node) -> _Terms:
        """The same sum with terms over one tensor as one, where that is no more work than the largest of them."""
        made = list[_Term]()
        for new in terms:
            term, at = new, 0
            while at < len(made):
                both = self._added((made[at], term), node) if made[at].read is term.read else None
                if both is not None and self._price(both, node) <= max(self._price(x, node) for x in (made[at], term)):
                    del made[at]
                    term, at = both, 0
                else:
                    at += 1
            made.append(term)
        return tuple(made)

    def _joined(self, terms: _Terms, node: fx.Node) -> tuple[int, _Terms]:
        """The fewest layers that do what all terms do, and their cost.

        While that is less, two terms over one tensor become one, with all that it takes in for nothing.
        """
        key = (node, *((term.read, id(term.op)) for term in terms))
        if key not in self._fewest:
            made = list(terms)
            while (found := self._union(made, node)) is not None:
                made = found
            cost = sum(self._price(term, node) for term in made) + len(made) - 1
            self._fewest[key] = terms, cost, tuple(made)
        return self._fewest[key][1:]

    def _union(self, terms: list[_Term], node: fx.Node) -> list[_Term] | None:
        """The terms with some over one tensor joined, those that save the most; None if none saves anything."""
        best, less = None, 0
        for a, b in itertools.combinations(terms, 2):
            both = self._added((a, b), node) if a.read is b.read else None
            if both is None:
                continue
            price, inside = self._price(both, node), [a, b]
            for term in terms:
                more = self._added((both, term), node) if term.read is a.read and term not in inside else None
                if more is not None and self._price(more, node) <= price:
                    both = more
                    inside.append(term)
            saved = sum(self._price(term, node) + 1 for term in inside) - price - 1
            if saved > less:
                best, less = [both, *(term for term in terms if term not in inside)], saved
        return best

    def _price(self, term: _Term, node: fx.Node) -> int:
        if isinstance(term.op, Affine):
            return _MAC * macs(term.op, shape(node)) + _LAYER
        return int(term.op is not None)

    def _added(self, terms: tuple[_Term, _Term], node: fx.Node) -> _Term | None:
        """One term that does what two over one tensor do together."""
        first, second = sorted(terms, key=lambda term: (term.op is None, isinstance(term.op, ChannelAffine)))
        if not self._context.permits(Group.PARALLEL, first.last, second.last, node):
            return None
        key = id(first.op), id(second.op)
        if key not in self._sums:
            self._sums[key] = terms, _sum(first.op, second.op)
        total = self._sums[key][1]
        return None if total is None else replace(first, op=total)

    def _best(self, states: list[_State]) -> list[_State]:
        """The states to go on with, the cheapest first if all were written now."""
        cheapest: dict[Any, _State] = {}
        for state in sorted(states, key=lambda state: state.cost):
            cheapest.setdefault(
                (state.stays, *(frozenset((t.read, _class(t.op)) for t in some) for some in state.terms.values())),
                state,
            )
        order = sorted(cheapest.values(), key=self._all_kept)
        best = list[_State]()
        for state in order:
            if len(best) < len(self._order) + _WIDTH and not any(self._replaces(other, state) for other in best):
                best.append(state)
        return best

    def _all_kept(self, state: _State) -> int:
        return state.cost + sum(self._joined(terms, x)[0] for x, terms in state.terms.items() if x not in state.stays)

    def _replaces(self, one: _State, other: _State) -> bool:
        """Whether one state can do whatever another can, for no more.

        For every tensor, it has the terms of the other, or fewer, or smaller ones. Or it can let the tensor stay, and
        any term that the other has there will be as much work as the tensor itself.
        """
        cost = one.cost
        for x, terms in other.terms.items():
            stays = x in other.stays
            if not _no_more(one.terms[x], terms):
                if not self._large(other, x):
                    return False
                stays = True
            if stays and x not in one.stays:
                cost += self._joined(one.terms[x], x)[0]
                cost -= len(terms) - 1  # sums that the other still has to make
            if cost > other.cost:
                return False
        return cost <= other.cost

    def _large(self, state: _State, node: fx.Node) -> bool:
        """Whether a tensor has a term over one with as many channels, or more, that nothing else reads from now on."""
        others = {term.read for x, terms in state.terms.items() if x is not node for term in terms}
        for term in state.terms[node]:
            if term.read in others or term.read in state.terms or term.read not in self._inside:
                continue
            if not isinstance(term.op, Affine):
                return True
            if term.op.inputs >= term.op.outputs and not term.op.geometry.transposed:
                return True
        return False


def _depth_first(root: fx.Node, inside: set[fx.Node]) -> list[fx.Node]:
    """The nodes of a region, each behind what it reads and, where it can be, right behind: few are open at a time."""
    order, seen, waiting = list[fx.Node](), set[fx.Node](), [(root, False)]
    while waiting:
        node, ready = waiting.pop()
        if ready:
            order.append(node)
        elif node in inside and node not in seen:
            seen.add(node)
            waiting.append((node, True))
            waiting += [(read, False) for read in reversed(node.all_input_nodes)]
    return order


def _class(op: Affine | ChannelAffine | None) -> Any:
    """What of a record its costs depend on, alone and merged."""
    return (op.geometry, op.groups, op.border_weight is None) if isinstance(op, Affine) else op is None


def _no_more(some: _Terms, terms: _Terms) -> bool:
    """Whether each of some terms is no more than another one of the terms, over the same tensor."""
    left = list(terms)
    for term in some:
        found = next((x for x in left if x.read is term.read and _no_larger(term.op, x.op)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _no_larger(one: Affine | ChannelAffine | None, two: Affine | ChannelAffine | None) -> bool:
    """Whether a record over a tensor is no more work than another, whatever both are merged with."""
    if isinstance(one, Affine):
        return isinstance(two, Affine) and covers(two, one)
    return one is None or two is not None


def _sum(one: Affine | ChannelAffine | None, two: Affine | ChannelAffine | None) -> Affine | ChannelAffine | None:
    """The record that adds two over one tensor, the first of which is the layer, or the scale, if there is one."""
    if isinstance(one, Affine):
        other = two if isinstance(two, Affine) else diagonal(one, two)
        return None if other is None else add(one, other)
    if one is None or isinstance(two, Affine) or (two is not None and two.channel_dim != one.channel_dim):
        return None
    if two is None:
        return replace(one, scale=one.scale + 1)
    uniform = one.uniform if one.uniform == two.uniform else None
    origin = max(one.origin, two.origin)
    return replace(one, scale=one.scale + two.scale, shift=one.shift + two.shift, uniform=uniform, origin=origin)


def _bare(op: Affine | ChannelAffine) -> Affine | ChannelAffine:
    """A record that adds nothing."""
    if isinstance(op, ChannelAffine):
        return replace(op, shift=torch.zeros_like(op.shift))
    return replace(op, weight=raw_weight(op), bias=torch.zeros_like(op.bias), border_weight=None, source=None)


def _write(net: Net, root: fx.Node, made: dict[fx.Node, _Terms]) -> None:
    """Write the tensors of a region that stay, each as the sum of its terms; those come first that others read."""
    new, used = dict[fx.Node, fx.Node](), set[fx.Node]()
    for node, terms in made.items():
        size, users, last = shape(node), list(node.users), node
        parts = list[fx.Node]()
        for term in terms:
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
            parts[-1].meta["shape"] = size
        total = parts[0]
        for part in parts[1:]:
            with net.graph.inserting_after(last):
                total = last = net.graph.call_function(aten.add.Tensor, (total, part))
            total.meta["shape"] = size
        if node is root and total is not node:
            for user in users:
                user.replace_input_with(node, total)
        new[node] = total
