"""The search for the best way to write a linear region: which of its tensors stay.

Keep some of its tensors: what lies between these contracts into one layer for each pair of them, the sum over the paths
between of what the layers on a path compose to, and an identity is a 1×1 kernel:

    y = w(x) + B(A(x))  is  (w + B A)(x), though B A alone may be more work than B and A

The choice with the fewest multiply-accumulates is found by dynamic programming over the tensors, from the inputs down.
A state says of every tensor that is still to be read what it is a sum of, each term a layer over a tensor that stays,
and what the tensors that stay have cost. A layer, or a sum, reads a tensor as it stands, which then stays, or each of
its terms. Nothing is computed for that but sizes (see `weights.Deferred`). What bounds the work:

  - Terms over one tensor are one term where that is no more work than the largest of them: parallel branches first.
  - Of states that differ in cost alone one goes on.
  - A state goes where another can do as little or less whatever follows (`Search._replaces`).
  - Of what is left go on, at every tensor, the cheapest: one for every node of the region, and a few.

So the work grows with the cube of the region's size at most, and is linear for blocks in sequence.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torch import fx

from layercollapse.compiler.analysis.cost import macs
from layercollapse.compiler.ir.algebra import compose, covers, mergeable, movable, repadded, total, unbiased
from layercollapse.compiler.ir.graph import Net, operands, shape, source
from layercollapse.compiler.ir.records import Affine, ChannelAffine
from layercollapse.compiler.ir.scaling import after, before
from layercollapse.compiler.passes.context import Group, PassContext

Linear: TypeAlias = Affine | ChannelAffine
# Of multiply-accumulates, then layers, then sums and scales, in one integer; of layers before all where those are to be
# few.
_LAYER, _MAC, _DEAR = 1 << 12, 1 << 24, 1 << 80
# Of the multiply-accumulates of what it is made of, what a layer has at most where layers are to be few. With 49 times
# as many, a depthwise 7x7 and a pointwise convolution took 400 MiB and two seconds of a FastViT to time as one.
MOST = 16
# States that go on, beside one for every node of the region.
_WIDTH = 16


@dataclass(frozen=True, eq=False)
class Term:
    """What a tensor is to another that it is a term of.

    Attributes:
        read: the tensor.
        op: what it is multiplied by; None for itself.
        last: the node of the layer, or scale, that the record takes the place of.
        head: the name of the first layer that is in it.
        moved: of those in it whose padding has moved to the first, the names of the first.
        work: multiply-accumulates of the layers that are in it.
        groups: the passes that have merged these.
    """

    read: fx.Node
    op: Linear | None
    last: fx.Node
    head: str = ""
    moved: tuple[str, ...] = ()
    work: int = 0
    groups: frozenset[Group] = frozenset()


Terms: TypeAlias = tuple[Term, ...]


@dataclass(frozen=True, eq=False)
class State:
    """Some tensors of a region written, and what those still to be read are.

    Attributes:
        cost: of the tensors that stay so far.
        terms: tensor that is still to be read -> what it is a sum of.
        stays: of these tensors, those that stay.
        latest: the last tensor that was written, and the state before.
    """

    cost: int = 0
    terms: dict[fx.Node, Terms] = field(default_factory=dict)
    stays: frozenset[fx.Node] = frozenset()
    latest: tuple[fx.Node, Terms, Any] | None = None

    def written(self) -> dict[fx.Node, Terms]:
        """The tensors that stay, each with what it is a sum of; those that they read come before."""
        tensors, at = {}, self.latest
        while at is not None:
            tensors[at[0]] = at[1]
            at = at[2]
        return dict(reversed(tensors.items()))


class Search:
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
        self._thrift = {node: context.permits(Group.THRIFT, node) for node in self._order}
        # With what they are made of: while that is held, nothing else has its id.
        self._composed: dict[tuple[int, fx.Node, bool], tuple[object, Linear | None, bool]] = {}
        self._sums: dict[tuple[int, ...], tuple[object, Linear | None]] = {}
        self._fewest: dict[tuple[Any, ...], tuple[Terms, int, Terms]] = {}

    @property
    def cost(self) -> int:
        """What the region costs as it is."""
        ops = [(node, self._net.op(node)) for node in self._order]
        return sum(1 if operands(node) else self._price(op, node) for node, op in ops)

    def run(self) -> State:
        """The cheapest state in which the root is written."""
        left = {node: sum(user in self._inside for user in node.users) for node in self._order}
        states = [State()]
        for node in self._order:
            states = [new for state in states for new in self._after(state, node)]
            for read in node.all_input_nodes:
                if read in left:
                    left[read] -= 1
            live = [x for x in states[0].terms if left[x] > 0 or x is self._root]
            states = [replace(s, terms={x: s.terms[x] for x in live}, stays=s.stays.intersection(live)) for s in states]
            states = self._best(states)
        return min((self._keep(state, self._root) for state in states), key=lambda state: state.cost)

    def _after(self, state: State, node: fx.Node) -> Iterator[State]:
        """The states that follow when a tensor is known as a sum of terms."""
        pair, op = operands(node), self._net.op(node)
        if pair is not None:
            for first, left in self._ways(state, pair[0], node):
                for second, right in self._ways(first, pair[1], node):
                    yield self._with(second, node, (*left, *right))
            return
        assert isinstance(op, Affine | ChannelAffine)
        for new, terms in self._ways(state, source(node), node):
            behind = [self._through(term, op, node, index == 0) for index, term in enumerate(terms)]
            if None not in behind:
                yield self._with(new, node, tuple(term for term in behind if term is not None))

    def _ways(self, state: State, read: fx.Node, node: fx.Node) -> Iterator[tuple[State, Terms]]:
        """A tensor as a node may read it: as it stands, and as its terms."""
        itself = (Term(read, None, node),)
        if read not in self._inside:
            yield state, itself
            return
        terms = state.terms[read]
        if len(terms) <= len(self._order):  # a region is never written with more layers than it has nodes
            yield state, terms
        if len(terms) > 1 or terms[0].op is not None:
            yield self._keep(state, read), itself

    def _keep(self, state: State, node: fx.Node) -> State:
        """The state in which a tensor stays."""
        if node in state.stays:
            return state
        cost, terms = self._joined(state.terms[node], node)
        return replace(state, cost=state.cost + cost, stays=state.stays | {node}, latest=(node, terms, state.latest))

    def _with(self, state: State, node: fx.Node, terms: Terms) -> State:
        return replace(state, terms={**state.terms, node: self._simpler(terms, node)})

    def _through(self, term: Term, op: Linear, node: fx.Node, adds: bool) -> Term | None:
        """A term of what a layer reads as a term of what it makes; one of all adds what the layer does."""
        key = id(term.op), node, adds
        if key not in self._composed:
            self._composed[key] = term.op, *self._follow(term, op if adds else unbiased(op), node)
        _, both, moves = self._composed[key]
        if both is None:
            return None
        work, groups = term.work, term.groups
        if isinstance(op, Affine):
            work += macs(op, shape(node))
            groups |= {Group.SEQUENCE} if isinstance(term.op, Affine) else set()
        if not self._affordable(both, work, node):
            return None
        head = term.head or str(node.target)
        return Term(term.read, both, node, head, (*term.moved, head) if moves else term.moved, work, groups)

    def _follow(self, term: Term, op: Linear, node: fx.Node) -> tuple[Linear | None, bool]:
        """What a term is behind a layer, or None; and whether that differs at the border."""
        first = term.op
        if first is None:
            return op, False
        if isinstance(op, ChannelAffine):
            both = after(first, op)
            return (both if isinstance(both, Affine | ChannelAffine) else None), False
        if first.channel_dim != op.channel_dim:
            return None, False
        if isinstance(first, ChannelAffine):
            return before(first, op), False
        if len(first.geometry.kernel) != len(op.geometry.kernel):
            return None, False
        if not self._context.permits(Group.SEQUENCE, term.last, node):
            return None, False
        if mergeable(first, op):
            return compose(first, op), False
        if self._context.repad and movable(first, op):
            return compose(*repadded(first, op)), True
        return None, False

    def _affordable(self, op: Linear, work: int, node: fx.Node) -> bool:
        """Whether a layer that is made of others is not so much more work that nobody need time it."""
        return isinstance(op, ChannelAffine) or self._thrift[node] or macs(op, shape(node)) <= MOST * work

    def _simpler(self, terms: Terms, node: fx.Node) -> Terms:
        """The same sum with terms over one tensor as one, where that is no more work than the largest of them."""
        fewer = list[Term]()
        for new in terms:
            term, at = new, 0
            while at < len(fewer):
                both = self._added((fewer[at], term), node) if fewer[at].read is term.read else None
                if both is not None and self._price(both.op, node) <= max(
                    self._price(x.op, node) for x in (fewer[at], term)
                ):
                    del fewer[at]
                    term, at = both, 0
                else:
                    at += 1
            fewer.append(term)
        return tuple(fewer)

    def _joined(self, terms: Terms, node: fx.Node) -> tuple[int, Terms]:
        """The fewest layers that do what all terms do, and their cost.

        While that is less, two terms over one tensor become one, with all that it takes in for nothing.
        """
        key = (node, *((term.read, id(term.op)) for term in terms))
        if key not in self._fewest:
            fewest, fewer = list(terms), self._union(list(terms), node)
            while fewer is not None:
                fewest, fewer = fewer, self._union(fewer, node)
            cost = sum(self._price(term.op, node) for term in fewest) + len(fewest) - 1
            self._fewest[key] = terms, cost, tuple(fewest)
        return self._fewest[key][1:]

    def _union(self, terms: list[Term], node: fx.Node) -> list[Term] | None:
        """The terms with some over one tensor joined, those that save the most; None if none saves anything."""
        best, less = None, 0
        for a, b in itertools.combinations(terms, 2):
            both = self._added((a, b), node) if a.read is b.read else None
            if both is None:
                continue
            price, inside = self._price(both.op, node), [a, b]
            for term in terms:
                more = self._added((both, term), node) if term.read is a.read and term not in inside else None
                if more is not None and self._price(more.op, node) <= price:
                    both = more
                    inside.append(term)
            saved = sum(self._price(term.op, node) + 1 for term in inside) - price - 1
            if saved > less:
                best, less = [both, *(term for term in terms if term not in inside)], saved
        return best

    def _price(self, op: object, node: fx.Node) -> int:
        """What a term costs where the tensor stays that it is a term of."""
        if isinstance(op, Affine):
            layer = _LAYER if self._thrift[node] else _DEAR
            return _MAC * macs(op, shape(node)) + layer
        return int(op is not None)

    def _added(self, terms: tuple[Term, Term], node: fx.Node) -> Term | None:
        """One term that does what two over one tensor do together."""
        first, second = sorted(terms, key=lambda term: (term.op is None, isinstance(term.op, ChannelAffine)))
        if not self._context.permits(Group.PARALLEL, first.last, second.last, node):
            return None
        key = id(first.op), id(second.op)
        if key not in self._sums:
            self._sums[key] = terms, total(first.op, second.op)
        both, work = self._sums[key][1], first.work + second.work
        if both is None or not self._affordable(both, work, node):
            return None
        groups = first.groups | second.groups | {Group.PARALLEL}
        return replace(first, op=both, moved=(*first.moved, *second.moved), work=work, groups=groups)

    def _best(self, states: list[State]) -> list[State]:
        """The states to go on with, the cheapest first if all were written now."""
        cheapest: dict[Any, State] = {}
        for state in sorted(states, key=lambda state: state.cost):
            cheapest.setdefault(_kind(state), state)
        order = sorted(cheapest.values(), key=self._all_kept)
        best = list[State]()
        for state in order:
            if len(best) < len(self._order) + _WIDTH and not any(self._replaces(other, state) for other in best):
                best.append(state)
        return best

    def _all_kept(self, state: State) -> int:
        return state.cost + sum(self._joined(terms, x)[0] for x, terms in state.terms.items() if x not in state.stays)

    def _replaces(self, one: State, other: State) -> bool:
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

    def _large(self, state: State, node: fx.Node) -> bool:
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


def _kind(state: State) -> Any:
    """What all that follows costs depends on: the tensors that stay, and what each is a sum of.

    Which tensor a term reads does not matter where nothing else does, and the layer says its channels.
    """
    reads = Counter(term.read for terms in state.terms.values() for term in terms)
    own = {read for read, count in reads.items() if count == 1 and read not in state.terms}

    def kind(term: Term) -> Any:
        return None if term.read in own and isinstance(term.op, Affine) else term.read, _class(term.op)

    return state.stays, *(frozenset(Counter(map(kind, terms)).items()) for terms in state.terms.values())


def _class(op: Linear | None) -> Any:
    """What of a record its costs depend on, alone and merged."""
    return (op.size, op.geometry, op.groups, op.border_weight is None) if isinstance(op, Affine) else op is None


def _no_more(some: Terms, terms: Terms) -> bool:
    """Whether each of some terms is no more than another one of the terms, over the same tensor."""
    left = list(terms)
    for term in some:
        match = next((x for x in left if x.read is term.read and _no_larger(term.op, x.op)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _no_larger(one: Linear | None, two: Linear | None) -> bool:
    """Whether a record over a tensor is no more work than another, whatever both are merged with."""
    if isinstance(one, Affine):
        return isinstance(two, Affine) and covers(two, one)
    return one is None or two is not None
