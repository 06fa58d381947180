"""What a network would save without its rectifiers, one by one and all together, before any of them is linear.

No model is emitted and nothing is timed: the passes run on the network as lowered, with one site after the other put in
the place of a line, and multiply-accumulates are counted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
import torch.utils._pytree as pytree
from torch import fx

from layercollapse.compiler.analysis.cost import macs, net_depth
from layercollapse.compiler.analysis.obstacles import Kept, obstacles, sequences
from layercollapse.compiler.ir.graph import Net, shape
from layercollapse.compiler.ir.names import identifier
from layercollapse.compiler.ir.records import Activation, Affine, ChannelAffine, ConstantMap
from layercollapse.compiler.passes.context import PassContext
from layercollapse.compiler.passes.linearize import ConstantInput, Known, NeuronStates, linearize
from layercollapse.compiler.passes.registry import run_passes
from layercollapse.entropy.layer import ON
from layercollapse.graph.aten import does
from layercollapse.graph.operations import Does


@dataclass(frozen=True)
class Saving:
    """What a network saves without a site, in multiply-accumulates of its layers for one sample.

    Attributes:
        identity: with the identity in the rectifier's place: layers around it may merge.
        constant: with every weight pruned that feeds it: what it makes is 0, and what only it needs goes. None: no
            output, or one output less, would depend on the input.
        together: what is saved without this site and all before it, each as the constant where that may be, else as
            the identity.
        barriers: layers that would follow each other without the rectifier, and stay two, and why.
    """

    identity: int
    constant: int | None
    together: int
    barriers: tuple[Kept, ...]

    @property
    def most(self) -> int:
        """The larger of the two."""
        return max(self.identity, self.constant or 0)


@dataclass(frozen=True)
class Savings:
    """What a network costs, and what its sites do of that.

    Attributes:
        macs: multiply-accumulates of its layers for one sample, with all passes that need no site linear.
        depth: the largest number of layers with weights on any path, likewise.
        least: the same depth without any site.
        by_site: of every site that the outputs need, and whose rectifier can be replaced.
    """

    macs: int
    depth: int
    least: int
    by_site: Mapping[str, Saving]


def savings(net: Net, feeding: Mapping[str, Collection[str]]) -> Savings:
    """What each site of a net costs.

    Args:
        net: as lowered; it stays as it is.
        feeding: site -> the layers that feed it.
    """
    base = _without(net, {})
    before, apart, live = _macs(base), _apart(base), _live(base)
    taken, zero, by_site, rest = dict[str, Known](), set[str](), dict[str, Saving](), base
    for node, op in base.records(Activation):
        channels = shape(node)[op.channel_dim]
        line = NeuronStates(torch.full((channels,), ON, dtype=torch.int8))
        nothing = ConstantInput(torch.zeros(channels, dtype=torch.float64))
        identity = _without(base, {op.site: line})
        constant = _without(base, {op.site: nothing}) if _live(base, {op.site}) == live else None
        if constant is not None and _live(constant) != live:  # a product of it and another, say
            constant = None
        # Each time from the network as it came: layers that merged early would keep others from merging better.
        both = None
        if constant is not None and _live(base, zero | {op.site}) == live:  # one branch may be constant, and not all
            both = _without(base, taken | {op.site: nothing})
        if both is not None and _live(both) == live:
            rest, taken[op.site] = both, nothing
            zero.add(op.site)
        else:
            rest, taken[op.site] = _without(base, taken | {op.site: line}), line
        before_it = set(map(identifier, feeding[op.site]))
        now = {pair: why for pair, why in _apart(identity).items() if pair[0] in before_it}
        by_site[op.site] = Saving(
            identity=before - _macs(identity),
            constant=None if constant is None else before - _macs(constant),
            together=before - _macs(rest),
            barriers=tuple(Kept(pair, why) for pair, why in now.items() if apart.get(pair) != why),
        )
    return Savings(before, net_depth(base), net_depth(rest), by_site)


def _without(net: Net, known: Mapping[str, Known]) -> Net:
    """A copy of a net with lines in the place of sites, and all passes applied."""
    net, context = net.copy(), PassContext()
    linearize(net, known, context)
    run_passes(net, context)
    return net


def _macs(net: Net) -> int:
    return sum(macs(op, shape(node)) for node, op in net.records(Affine))


def _apart(net: Net) -> dict[tuple[str, str], str]:
    """Layers that have no rectifier between them and stay two, and why."""
    pairs = {(str(two.first.target), str(two.second.target)): two.reason for two in sequences(net, repad=False)}
    return {**obstacles(net), **pairs}


def _live(net: Net, zero: Collection[str] = ()) -> list[bool]:
    """Whether each output depends on an input, with some sites constant."""
    depends = dict[fx.Node, bool]()
    for node in net.graph.nodes:
        op = net.op(node)
        dead = isinstance(op, ConstantMap) or (isinstance(op, ChannelAffine) and not bool(op.scale.any()))
        dead = dead or does(node) is Does.SIZE or (isinstance(op, Activation) and op.site in zero)
        depends[node] = node.op == "placeholder" or (not dead and any(depends[x] for x in node.all_input_nodes))
    output = next(node for node in net.graph.nodes if node.op == "output")
    return [depends[x] for x in pytree.tree_leaves(output.args) if isinstance(x, fx.Node)]
