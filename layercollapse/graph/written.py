"""Rectifiers that a model writes out, found in a graph, where a call of the rectifier takes their place, and in what a
running model computes.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, fx
from torch.utils.weak import TensorWeakRef

from layercollapse.graph import rectifiers
from layercollapse.graph.aten import example_shape, packet, rectifier_of
from layercollapse.graph.channel_dims import name_of
from layercollapse.graph.meta import ABSORBED, COMPOSED, VALUE, WRITTEN, inherit
from layercollapse.graph.terms import NAMES, Constant, Found, Term, Terms, keeps

aten = torch.ops.aten

T = TypeVar("T")

# A call of a graph: its node, target, arguments and keyword arguments.
Step = tuple[fx.Node, Any, tuple, dict[str, Any]]


def rewrite(graph: fx.Graph, constants: Mapping[str, Tensor]) -> None:
    """Replace the rectifiers that are written out by calls, in place; what only they read is left without a reader.

    In half precision the smooth ones written out round at every step, by a percent of what they give: their calls
    remain with the rectifier's node, and a collapsed model makes them as they were.

    An ordinary rectifier that is part of one (the relu6 of a hard swish) is no site; where something else reads it, it
    is marked so.

    Args:
        graph: functional.
        constants: placeholder -> the number that it stands for, a tensor of one element, made anew in every forward.
    """
    terms = _NodeTerms()
    matches: list[tuple[fx.Node, Found]] = []
    absorbed: set[fx.Node] = set()
    for node in graph.nodes:
        if node.name in constants:
            value = constants[node.name]
            terms.keep(node, Constant(float(value), shape=tuple(value.shape)))
        if node.op != "call_function" or not isinstance(VALUE.get(node), Tensor):
            continue
        name = name_of(packet(node)).strip("_")
        term = terms.called(name, node.args, dict(node.kwargs)) if name in NAMES else None
        if isinstance(term, Term) and keeps(term, VALUE[node].dtype) and (one := terms.rectifier(term)) is not None:
            if rectifier_of(node) is not None:
                if one.variable is term.operands[0]:
                    term.match, term.variable, term.site = one.match, one.variable, node
            elif one.match.scale == 1:
                term.match, term.variable, term.site = one.match, one.variable, node
                absorbed |= {part.site for part in one.inner[1:] if part.site is not None}
                matches.append((node, one))
        if term is not None:
            terms.made(node, term)
    replaced: dict[fx.Node, fx.Node] = {}
    for node, one in matches:
        if node not in absorbed:
            replaced[node] = _call(node, one, replaced, terms)
    for node in absorbed - set(replaced):
        ABSORBED[node] = True


def _call(node: fx.Node, one: Found, replaced: Mapping[fx.Node, fx.Node], terms: _NodeTerms) -> fx.Node:
    graph = node.graph
    source: fx.Node = replaced.get(one.variable.value, one.variable.value)
    dtype = VALUE[node].dtype
    with graph.inserting_before(node):
        if VALUE[source].dtype != dtype:  # under autocast a power is one of float32
            source = graph.call_function(aten._to_copy.default, (source,), {"dtype": dtype})
            inherit(source, node)
        match = one.match
        call = graph.call_function(match.operator, (source, *match.arguments), dict(match.keywords))
    inherit(call, node)
    COMPOSED[call] = True
    rounded = any(term.dtype in (torch.float16, torch.bfloat16) for term in (*one.inner, one.variable))
    if rounded and not rectifiers.BY_KIND[match.kind].piecewise_linear:
        steps = _calls(one, terms, replaced)
        if steps is not None:
            WRITTEN[call] = steps
    node.replace_all_uses_with(call)
    return call


def _calls(match: Found, terms: _NodeTerms, replaced: Mapping[fx.Node, fx.Node]) -> list[Step] | None:
    """The calls that a rectifier was, with those that make the numbers in it; None if these need another tensor."""
    start, own = match.variable.value, {part.value for part in match.inner}
    waiting = list(own)
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in own and source is not start and source.op == "call_function":
                if not isinstance(terms.find(source), Constant):
                    return None
                own.add(source)
                waiting.append(source)
    return [
        (node, node.target, fx.map_arg(node.args, lambda n: replaced.get(n, n)), dict(node.kwargs))
        for node in terms.known
        if node in own
    ]


class _NodeTerms(Terms[fx.Node]):
    def __init__(self) -> None:
        super().__init__()
        self.known: dict[fx.Node, Term | Constant] = {}  # in the order of the graph

    def find(self, value: fx.Node) -> Term | Constant | None:
        return self.known.get(value)

    def keep(self, value: fx.Node, known: Term | Constant) -> None:
        self.known[value] = known
        if isinstance(known, Term):
            known.value = value

    def describe(self, value: Any) -> tuple[torch.dtype, tuple[int, ...]] | None:
        fake = VALUE.get(value) if isinstance(value, fx.Node) else None
        return (fake.dtype, example_shape(fake) or ()) if isinstance(fake, Tensor) else None


class TensorMemo(Generic[T]):
    """What is known of tensors while they are there; it keeps none there, and what it knows until its own end.

    torch's WeakIdKeyDictionary does the same in 3 us instead of 0.3.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], T]] = {}

    def get(self, tensor: Tensor) -> T | None:
        entry = self._entries.get(id(tensor))
        # One that is gone may have left its id to another.
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def __setitem__(self, tensor: Tensor, known: T) -> None:
        self._entries[id(tensor)] = weakref.ref(tensor), known


class TensorTerms(Terms[Tensor]):
    """Terms of the tensors of a running model, which are kept for as long as these are there, and keep none there."""

    def __init__(self) -> None:
        super().__init__()
        self._known: TensorMemo[tuple[Term | Constant, int]] = TensorMemo()
        self._writes: dict[int, int] = {}  # storage -> how often something was written into it

    def find(self, value: Tensor) -> Term | Constant | None:
        known = self._known.get(value)
        return known[0] if known is not None and known[1] == self._written(value) else None

    def keep(self, value: Tensor, known: Term | Constant) -> None:
        written = self._written(value)
        self._known[value] = known, written
        if isinstance(known, Term):
            known.value = TensorWeakRef(value), written

    def describe(self, value: Any) -> tuple[torch.dtype, tuple[int, ...]] | None:
        return (value.dtype, tuple(value.shape)) if isinstance(value, Tensor) else None

    def tensor(self, term: Term) -> Tensor | None:
        """A term's tensor, if it is still there and has the values that it had."""
        reference, written = term.value or (None, 0)
        value = reference() if reference is not None else None
        return value if value is not None and written == self._written(value) else None

    def wrote(self, value: Tensor) -> None:
        """Forget what is known of all tensors that share memory with one that a call has changed."""
        storage = _storage(value)
        self._writes[storage] = self._writes.get(storage, 0) + 1

    def _written(self, value: Tensor) -> int:
        return self._writes.get(_storage(value), 0) if self._writes else 0


def _storage(value: Tensor) -> int:
    try:
        return value.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return id(value)  # sparse, or batched by vmap
