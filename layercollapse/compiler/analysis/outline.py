"""A network as the row of its layers and rectifiers, for people to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from layercollapse.compiler.analysis.cost import macs
from layercollapse.compiler.ir.graph import Net, shape
from layercollapse.compiler.ir.records import Activation, Affine, ChannelAffine
from layercollapse.graph.meta import ORIGIN


@dataclass(frozen=True)
class Part:
    """A layer with weights, or a rectifier.

    Attributes:
        name: of the module, or of the site.
        what: a layer in words ("3x3, 16 → 32, stride 2"), or the kind of the rectifier.
        weights: number of weights; 0 for a rectifier.
        macs: multiply-accumulates for one sample of the example inputs; 0 for a rectifier.
    """

    name: str
    what: str
    weights: int = 0
    macs: int = 0

    @property
    def rectifier(self) -> bool:
        """Whether it is one."""
        return not self.weights


def outline(net: Net, linear: Mapping[str, str] | None = None) -> tuple[Part, ...]:
    """The layers and rectifiers of a net in execution order.

    Args:
        net: as lowered, or rewritten.
        linear: captured node -> site, of the sites that the model has as lines already: they are rectifiers, too.
    """
    parts = []
    for node in net.graph.nodes:
        op = net.op(node)
        origin = str(ORIGIN.get(node))
        if isinstance(op, Affine):
            parts.append(Part(str(node.target), in_words(op), max(1, math.prod(op.size)), macs(op, shape(node))))
        elif isinstance(op, Activation):
            parts.append(Part(op.site, op.kind))
        elif isinstance(op, ChannelAffine) and linear and origin in linear:
            parts.append(Part(linear[origin], "linear"))
    return tuple(parts)


def in_words(op: Affine) -> str:
    """A layer as "3x3, 16 → 32, stride 2"; stride, dilation and groups where they are not 1."""
    geometry = op.geometry
    words = ["x".join(map(str, geometry.kernel))] if geometry.kernel else []
    words.append(f"{op.inputs} → {op.outputs}")
    for name, sizes in (("stride", geometry.stride), ("dilation", geometry.dilation)):
        if any(size != 1 for size in sizes):
            words.append(f"{name} {'x'.join(map(str, dict.fromkeys(sizes)))}")
    if op.groups > 1:
        words.append("depthwise" if op.depthwise else f"{op.groups} groups")
    if geometry.transposed:
        words.append("transposed")
    return ", ".join(words)
