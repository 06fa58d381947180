"""The records that stand for layers: plain data, float64 on the CPU, rounded once when the model is emitted.

Every affine layer, whatever module or function it came from, is one `Affine`; batch norms and rectifiers that
became linear are `ChannelAffine`; a branch that no longer reads its input is a `ConstantMap`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from layercollapse.compiler.ir.weights import Float64, nonzero, raw_weight


@dataclass(frozen=True)
class ConvGeometry:
    """How a convolution moves over its input: one integer per spatial dimension, none for a linear layer.

    A transposed convolution has an output padding, None for the others: what is added to the size of its output.
    """

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] | None = None

    @property
    def transposed(self) -> bool:
        return self.output_padding is not None

    @property
    def border_sensitive(self) -> bool:
        """Whether the same constant everywhere may come out as different values: some positions read fewer taps."""
        return any(self.padding) or self.transposed

    @property
    def extent(self) -> tuple[int, ...]:
        """Positions between the first and the last tap, both counted."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def pointwise(self) -> bool:
        """Whether every output position reads the input position it stands on, and no other."""
        return all(k == 1 for k in self.kernel) and not self.border_sensitive and all(s == 1 for s in self.stride)


class Origin(enum.IntEnum):
    """What the values of a record were made of, the largest of what went into it: what they are in the emitted module.

    Buffers and numbers alone stay a buffer; parameters that take no gradient, one that takes none.
    """

    BUFFER = 0
    FROZEN = 1
    TRAINED = 2


@dataclass(frozen=True)
class Affine:
    """A linear layer or a convolution: ``y = conv(x, weight) + conv(ones, border_weight) + bias``.

    Attributes:
        weight: float64, (O, I / groups, *kernel), for a transposed convolution too; see `weights` for what is
            held.
        bias: float64, (O,).
        geometry: kernel, stride, padding, dilation; empty for a linear layer.
        groups: number of channel groups.
        border_weight: float64, (O, *kernel), or None: the weight of one more input channel that is 1 everywhere and
            padded with zeros like the others. It carries, exactly, constants that meet a zero padding. Always None
            where the geometry is not `ConvGeometry.border_sensitive`: there it is part of the bias.
        dtype: what the layer is emitted in: what it computes in, also where the model casts float32 weights to it.
        source: names of the model's own weight and bias while the layer is unchanged, else None.
        origin: see `Origin`.
    """

    weight: Tensor
    bias: Tensor
    geometry: ConvGeometry
    groups: int
    dtype: torch.dtype
    border_weight: Tensor | None = None
    source: tuple[str, str | None] | None = None
    origin: Origin = Origin.TRAINED

    @property
    def size(self) -> tuple[int, ...]:
        """Shape of the weight; reading the weight itself may compute it."""
        return raw_weight(self).size()

    @property
    def outputs(self) -> int:
        return self.size[0]

    @property
    def inputs(self) -> int:
        return self.size[1] * self.groups

    @property
    def depthwise(self) -> bool:
        return 1 < self.groups == self.outputs == self.inputs

    @property
    def channel_dim(self) -> int:
        return 1 if self.geometry.kernel else -1

    def dense(self) -> Tensor:
        """The weight without groups: (O, I, *kernel)."""
        return ungrouped(self.weight, self.groups)

    def spread(self, values: Tensor) -> Tensor:
        """A value for each input (I,) so that it broadcasts over (O, I / groups): (1, I) without groups."""
        return values[None] if self.groups == 1 else values[input_channels(self)]

    def pairs(self) -> Tensor:
        """Mask (O, I / groups) of the outputs and the inputs between which there is any weight."""
        return nonzero(self).flatten(2).any(2) if self.geometry.kernel else nonzero(self)

    def reads(self) -> Tensor:
        """Mask (I,) of the input channels that any weight multiplies."""
        return self._alive[0]

    def writes(self) -> Tensor:
        """Mask (O,) of the outputs that any weight feeds."""
        return self._alive[1]

    @cached_property
    def _alive(self) -> tuple[Tensor, Tensor]:
        pairs = self.pairs()
        return pairs.unflatten(0, (self.groups, self.outputs // self.groups)).any(1).flatten(), pairs.any(1)


Affine.weight = Float64("weight")  # type: ignore[assignment]


@dataclass(frozen=True)
class ChannelAffine:
    """``y = scale * x + shift``, per channel: a batch norm, or a rectifier that became linear.

    Attributes:
        scale: float64, (C,).
        shift: float64, (C,).
        channel_dim: 1 for (N, C, *spatial), -1 for (N, *, C).
        dtype: what the layer is emitted in.
        uniform: where a scale with one value for all channels came from, so that it stays one: ``"number"`` in the
            code, or ``"parameter"`` with one element; None for one value per channel.
        origin: see `Origin`.
    """

    scale: Tensor
    shift: Tensor
    channel_dim: int
    dtype: torch.dtype
    uniform: str | None = None
    origin: Origin = Origin.TRAINED

    @property
    def identity(self) -> bool:
        return bool(self.scale.eq(1).all() and self.shift.eq(0).all())

    @property
    def shifts_only(self) -> bool:
        return bool(self.scale.eq(1).all())

    @property
    def scales_only(self) -> bool:
        return bool(self.shift.eq(0).all())


@dataclass(frozen=True)
class Activation:
    """A rectifier that still bends.

    Attributes:
        site: name of the site.
        kind: see `layercollapse.graph.rectifiers`.
        channel_dim: 1 or -1.
        lower: the lower bend.
        upper: the upper bend, or None.
        slope: float64, (C,), the slope below the lower bend (LeakyReLU, PReLU), or None for a flat one.
        arguments: of the emitted module.
        dtype: what its parameters are emitted in.
        fixed: float64, (C,), or None: the value of each neuron that has only one, NaN for the others; known from the
            data or from bounds, where `facts` could not say it.
    """

    site: str
    kind: str
    channel_dim: int
    lower: float
    upper: float | None
    slope: Tensor | None
    arguments: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    fixed: Tensor | None = None


@dataclass(frozen=True)
class ConstantMap:
    """A map that does not depend on the data: ``y = conv(ones, border_weight) + bias``.

    Its input gives only the size.

    Attributes:
        border_weight: float64, (O, *kernel), or None: y is the bias everywhere.
        bias: float64, (O,).
        geometry: of the convolution over the ones.
        before: the geometries that lead from the size of the input to the size of the map of ones.
        dtype: what it is emitted in.
        origin: see `Origin`.
    """

    border_weight: Tensor | None
    bias: Tensor
    geometry: ConvGeometry
    before: tuple[ConvGeometry, ...]
    dtype: torch.dtype
    origin: Origin = Origin.TRAINED

    @property
    def channel_dim(self) -> int:
        return 1 if self.geometry.kernel else -1


Op: TypeAlias = Affine | ChannelAffine | Activation | ConstantMap


AnyOp = TypeVar("AnyOp", Affine, ChannelAffine, Activation, ConstantMap)


def input_channels(op: Affine) -> Tensor:
    """int64 (O, I / groups): the input channel that each weight multiplies."""
    per_group = op.size[1]
    rows = max(1, op.outputs // op.groups)
    return (torch.arange(op.outputs) // rows * per_group)[:, None] + torch.arange(per_group)


def ungrouped(weight: Tensor, groups: int) -> Tensor:
    """A tensor (O, I / groups, ...) as (O, I, ...): zero but for the blocks of the groups."""
    if groups == 1:
        return weight
    blocks = weight.unflatten(0, (groups, -1))
    out = weight.new_zeros(groups, blocks.shape[1], groups, *weight.shape[1:])
    index = torch.arange(groups)
    out[index, :, index] = blocks
    return out.flatten(2, 3).flatten(0, 1)


def transposed(weight: Tensor, groups: int) -> Tensor:
    """A weight (O, I / groups, *kernel) as (I, O / groups, *kernel), which transposed convolutions have; or back."""
    blocks = weight.unflatten(0, (groups, -1))
    return blocks.transpose(1, 2).flatten(0, 1)
