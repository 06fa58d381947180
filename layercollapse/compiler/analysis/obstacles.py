"""Which operations stand between layers that have no rectifier between them, and so keep them two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import fx

from layercollapse.compiler.analysis.cost import macs
from layercollapse.compiler.ir.algebra import compose, mergeable, movable, repadded
from layercollapse.compiler.ir.graph import Net, shape, sole_user, source
from layercollapse.compiler.ir.records import Activation, Affine, ChannelAffine, ConstantMap
from layercollapse.graph.aten import does, packet
from layercollapse.graph.operations import Does

_SHOWN = 3


@dataclass(frozen=True)
class Kept:
    """A layer that stays as it came, or two in sequence that stay two.

    Attributes:
        layers: the name, or the names.
        reason: why.
    """

    layers: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Sequence:
    """Two layers, the second of which alone reads the first, and which no pass has merged.

    Attributes:
        first: the first; second: the second.
        work: the multiply-accumulates of one layer in their place, over theirs; None: no one layer is exact.
    """

    first: fx.Node
    second: fx.Node
    work: float | None

    @property
    def reason(self) -> str:
        """Why they stay."""
        if self.work is None:
            return (
                "no single layer is exact at the border: the second is padded and the first is not pointwise "
                '(mode="repad" may merge them, for one more training)'
            )
        return f"merged they need {self.work:.1f} times the multiply-accumulates"


def sequences(net: Net, repad: bool) -> Iterator[Sequence]:
    """The layers in sequence that are left; `repad`: whether one may replace two that differs at the border."""
    for second, after in net.records(Affine):
        first = source(second)
        before = net.affine(first)
        if before is None or sole_user(first) is not second or before.channel_dim != after.channel_dim:
            continue
        if len(before.geometry.kernel) != len(after.geometry.kernel):
            continue
        one = None
        if mergeable(before, after):
            one = compose(before, after)
        elif repad and movable(before, after):
            one = compose(*repadded(before, after))
        apart = macs(before, shape(first)) + macs(after, shape(second))
        yield Sequence(first, second, None if one is None else macs(one, shape(second)) / max(1, apart))


def obstacles(net: Net) -> dict[tuple[str, str], str]:
    """Pairs of affine layers, the second of which reads the first through other operations -> what stands between.

    Across one sum at most: behind two, every layer of a residual network reads every other. `Sequence`s are not among
    them, nor pairs with a rectifier between: of these the site says why it stays.
    """
    reasons: dict[tuple[str, str], str] = {}
    for node, _ in net.records(Affine):
        seen: set[fx.Node] = set()
        paths: list[tuple[fx.Node, tuple[str, ...], int]] = [(user, (), 0) for user in node.users]
        while paths:
            user, between, sums = paths.pop(0)
            if user in seen or user.op == "output" or does(user) is Does.SIZE:
                continue
            seen.add(user)
            op = net.op(user)
            pair = (str(node.target), str(user.target))
            if isinstance(op, Affine):
                if set(between) == {"add"}:
                    shared = len(node.users) > 1 or len(source(user).users) > 1
                    why = "it, or the first layer, is read by others too" if shared else "one layer would be more work"
                    reasons[pair] = f"between them: a sum; {why}{'' if shared else ', or differ at the border'}"
                elif between:
                    reasons[pair] = f"between them: {', '.join(dict.fromkeys(between))}"
                elif others := sorted({_reader(net, other) for other in node.users if other is not user}):
                    reasons[pair] = f"the first is also read by {', '.join(others)}"
            elif not isinstance(op, Activation | ConstantMap):
                sums += (does(user) is Does.SUM) and len(user.all_input_nodes) > 1
                if sums < 2:
                    paths += [(reader, (*between, _name(net, user)), sums) for reader in user.users]
    return reasons


def _reader(net: Net, node: fx.Node) -> str:
    name = _name(net, node)
    return "a sum" if name == "add" else name


def _name(net: Net, node: fx.Node) -> str:
    """What an operation is called: the site of a rectifier, the name of a layer, or of the aten operation."""
    op = net.op(node)
    if isinstance(op, Activation):
        return op.site
    if isinstance(op, ChannelAffine):
        return f"the scale {node.target}"
    if op is not None or node.op != "call_function":
        return str(node.target)
    return str(getattr(packet(node), "__name__", packet(node))).lstrip("_")


def grouped(kept: Iterable[Kept]) -> list[str]:
    """One line for every reason: a pair of layers, or a layer, and for a reason of many the first few."""
    places: dict[tuple[str, bool], list[str]] = {}
    for one in kept:
        places.setdefault((one.reason, len(one.layers) > 1), []).append(" → ".join(one.layers))
    lines = []
    for (reason, pairs), names in places.items():
        kind = ("pair" if pairs else "layer") + "s" * (len(names) > _SHOWN + 1)
        more = f" and {len(names) - _SHOWN} more {kind}" if len(names) > _SHOWN else ""
        lines.append(f"{', '.join(names[:_SHOWN])}{more}: {'kept in sequence: ' if pairs else ''}{reason}")
    return lines
