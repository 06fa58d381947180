"""The pass that merges affine layers in sequence, and the choice of which ones.

A chain of n layers without a rectifier between them can be cut into segments in many ways, each segment merged into
one layer. The cheapest cut is found by dynamic programming over the end of the last segment:

    best(j) = min over i < j of best(i) + cost(merged i..j)

in multiply-accumulates, or in measured time where that is asked for and merging everything needs more of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

from torch import fx

from layercollapse.compiler.analysis.cost import macs
from layercollapse.compiler.ir.algebra import compose, mergeable, movable, repadded
from layercollapse.compiler.ir.graph import Net, shape, sole_user, source
from layercollapse.compiler.ir.records import Affine
from layercollapse.compiler.passes.context import Group, PassContext

# Kernels grow with every merge, and the ways to cut a chain with the square of its length.
_LONGEST = 8
# A measured time must be better by this much to decide against the multiply-accumulates.
_GAIN = 0.9
# Of their multiply-accumulates, what a merged layer has at most to be measured. With 49 times as many, a depthwise 7x7
# and a pointwise convolution took 400 MiB and two seconds of a FastViT to time as one.
_MOST = 16

Segments = dict[tuple[int, int], Affine]
Cut = list[tuple[int, int]]


def merge_in_sequence(net: Net, context: PassContext) -> bool:
    """Affine layers with nothing between become one, where that is exact and pays."""
    changed = False
    context.kept.clear()
    for chain in list(_chains(net, context)):
        segments = _segments(net, context, chain)
        cut = _choose(context, chain, segments)
        _note(context, chain, segments, cut)
        for first, last in cut:
            if first == last:
                continue
            head, tail = chain[first], chain[last]
            if _moves(net, chain, segments, first, last):
                context.repadded.append((str(head.target), str(tail.target)))
            net.set(tail, segments[first, last])
            tail.replace_input_with(source(tail), source(head))
            for node in reversed(chain[first:last]):
                net.erase(node)
            changed = True
    return changed


def _chains(net: Net, context: PassContext) -> Iterator[list[fx.Node]]:
    """Maximal runs of affine layers, each of which alone reads the one before."""
    for node, _ in net.records(Affine):
        if _next(net, context, source(node)) is node:
            continue
        chain = [node]
        while len(chain) < _LONGEST and (follower := _next(net, context, chain[-1])) is not None:
            chain.append(follower)
        if len(chain) > 1:
            yield chain


def _next(net: Net, context: PassContext, node: fx.Node) -> fx.Node | None:
    op, user = net.affine(node), sole_user(node)
    follower = net.affine(user)
    if op is None or user is None or follower is None or not context.permits(Group.SEQUENCE, node, user):
        return None
    return user if len(op.geometry.kernel) == len(follower.geometry.kernel) else None


def _segments(net: Net, context: PassContext, chain: list[fx.Node]) -> Segments:
    """The merged layer of every segment that one layer can do exactly, (first, last) inclusive.

    In a net that may be padded anew also of the others, which differ at the border.
    """
    segments: Segments = {}
    ops = [op for node in chain if (op := net.affine(node)) is not None]
    for first, head in enumerate(ops):
        merged = segments[first, first] = head
        for last, op in enumerate(ops[first + 1 :], first + 1):
            if not mergeable(merged, op) and not (context.repad and movable(merged, op)):
                break
            merged = compose(merged, op) if mergeable(merged, op) else compose(*repadded(merged, op))
            segments[first, last] = merged
    return segments


def _moves(net: Net, chain: list[fx.Node], segments: Segments, first: int, last: int) -> bool:
    """Whether a segment is one of those that differ at the border."""
    ops = [net.affine(node) for node in chain[first + 1 : last + 1]]
    return any(op is not None and not mergeable(segments[first, first + index], op) for index, op in enumerate(ops))


def _choose(context: PassContext, chain: list[fx.Node], segments: Segments) -> Cut:
    def work(first: int, last: int) -> float:
        return macs(segments[first, last], shape(chain[last])) + 2**-10  # of two equal cuts, the one with fewer layers

    cut = _cheapest(len(chain), segments, work)
    if context.layer_ms is None or len(cut) == 1:
        return cut

    def time(first: int, last: int) -> float:
        return _time(context, chain, segments, first, last)

    timed = _cheapest(len(chain), segments, time)
    faster = sum(time(*segment) for segment in timed) < _GAIN * sum(time(*segment) for segment in cut)
    return timed if faster else cut


def _time(context: PassContext, chain: list[fx.Node], segments: Segments, first: int, last: int) -> float:
    """What a segment takes, in ms; infinity if that is so much more work that nobody need measure it."""
    assert context.layer_ms is not None
    parts = sum(macs(segments[index, index], shape(chain[index])) for index in range(first, last + 1))
    if first < last and macs(segments[first, last], shape(chain[last])) > _MOST * parts:
        return math.inf
    return context.layer_ms(segments[first, last], shape(source(chain[first])))


def _cheapest(length: int, segments: Segments, cost: Callable[[int, int], float]) -> Cut:
    best, cuts = [0.0], [[]]  # type: ignore[var-annotated]
    for last in range(length):
        total, cut = math.inf, []
        for first in range(last + 1):
            if (first, last) in segments and best[first] + cost(first, last) < total:
                total, cut = best[first] + cost(first, last), [*cuts[first], (first, last)]
        best.append(total)
        cuts.append(cut)
    return cuts[-1]


def _note(context: PassContext, chain: list[fx.Node], segments: Segments, cut: Cut) -> None:
    """Say why layers that follow each other stay two."""
    for (first, last), (after, end) in itertools.pairwise(cut):
        pair = (str(chain[last].target), str(chain[after].target))
        merged = segments.get((first, end)) or segments.get((last, after))
        if merged is None:
            context.kept[pair] = (
                "no single layer is exact at the border: the second is padded and the first is not pointwise "
                '(mode="repad" may merge them, for one more training)'
            )
            continue
        one = macs(merged, shape(chain[end]))
        two = sum(macs(segments[s], shape(chain[s[1]])) for s in ((first, last), (after, end)))
        context.kept[pair] = f"merged they need {one / max(1, two):.1f} times the multiply-accumulates"
        if context.layer_ms is not None and (first, end) in segments:
            ms = [_time(context, chain, segments, *some) for some in ((first, end), (first, last), (after, end))]
            if math.isfinite(ms[0]):
                context.kept[pair] += f" and {ms[0]:.3f} ms instead of {ms[1] + ms[2]:.3f} ms"
