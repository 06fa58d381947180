"""The modules that a collapsed model may need beside those of `torch.nn`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layercollapse.errors import LayerCollapseError
from layercollapse.graph.rectifiers import quick_gelu, tanh_gelu


class ChannelAffine(nn.Module):
    """``y = scale * x + shift`` per channel: a batch norm in evaluation mode, or a rectifier that became linear.

    Args:
        channels: number of channels C, or 1 for one value for all.
        channel_dim: 1 for inputs (N, C, *spatial), -1 for (N, *, C).
        scaled: whether there is a scale; otherwise ``y = x + shift``.
        shifted: whether there is a shift; otherwise ``y = scale * x``.
    """

    def __init__(self, channels: int, channel_dim: int = 1, scaled: bool = True, shifted: bool = True) -> None:
        super().__init__()
        self.channels, self.channel_dim = channels, channel_dim
        self.scale = nn.Parameter(torch.ones(channels)) if scaled else None
        self.shift = nn.Parameter(torch.zeros(channels)) if shifted else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *spatial) or (N, *, C) -> the same."""
        trailing = (1,) * (x.ndim - 2 if self.channel_dim == 1 else 0)
        if self.scale is None:
            return x if self.shift is None else x + self.shift.view(-1, *trailing)
        if self.shift is None:
            return x * self.scale.view(-1, *trailing)
        if trailing and x.stride(1) != 1 and x.shape[1] == self.channels and not torch.compiler.is_compiling():
            # Where the channels are not the last in memory: on one thread (16, 64, 28, 28) took 0.15 ms so and 0.42 ms
            # with addcmul; where they are, 0.22 ms and 0.09 ms. The values are the same.
            zeros, ones = torch.zeros_like(self.shift), torch.ones_like(self.shift)
            # Not 0, which torch 2.11 refuses; 1 + 1e-30 is 1 in every type.
            return F.batch_norm(x, zeros, ones, self.scale, self.shift, training=False, eps=1e-30)
        return torch.addcmul(self.shift.view(-1, *trailing), x, self.scale.view(-1, *trailing))

    def extra_repr(self) -> str:
        parts = f"scaled={self.scale is not None}, shifted={self.shift is not None}"
        return f"{self.channels}, channel_dim={self.channel_dim}, {parts}"


class QuickGELU(nn.Module):
    """``y = x * sigmoid(1.702 x)``: CLIP's GELU, which torch has no module for; any shape -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        return quick_gelu(x)


class TanhGELU(nn.Module):
    """`nn.GELU(approximate="tanh")` with a factor of few digits for √(2/π), where float64 tells; see `tanh_gelu`.

    Args:
        factor: as the model writes it.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = float(factor)

    def forward(self, x: Tensor) -> Tensor:
        return tanh_gelu(x, self.factor)

    def extra_repr(self) -> str:
        return repr(self.factor)


class _Last(NamedTuple):
    """A map, and all that it was computed from."""

    size: list[int]
    weight: Tensor
    bias: Tensor
    plane: Tensor

    def fits(self, size: list[int], weight: Tensor, bias: Tensor) -> bool:
        same = self.size == size and self.weight.dtype == weight.dtype
        return same and torch.equal(self.weight, weight) and torch.equal(self.bias, bias)


class ConstantMap(nn.Module):
    """What a branch that no longer reads its input adds to the network: ``conv(ones, weight) + bias``.

    A convolution pads its constant inputs with zeros, so the map differs at the border; one channel of ones, padded
    in the same way, gives it exactly, for every input size. The input only tells the size.

    Args:
        channels: number of output channels O.
        windows: (kernel, stride, padding, dilation), each one integer per spatial dimension, of the convolutions
            that lead from the size of the input to the size of the output; the last one is applied to the ones. A
            transposed convolution has an output padding as its fifth part.
            Empty for a map over (N, *, O) that is the bias everywhere.
        bordered: whether there is a weight; otherwise the map is the bias everywhere.
    """

    def __init__(self, channels: int, windows: list[list[list[int]]], bordered: bool = True) -> None:
        super().__init__()
        self.channels = channels
        self.windows = [[list(part) for part in window] for window in windows]
        kernel = self.windows[-1][0] if self.windows else []
        self.weight = nn.Parameter(torch.zeros(channels, 1, *kernel)) if bordered else None
        self.bias = nn.Parameter(torch.zeros(channels))
        self._last: _Last | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *spatial) -> (N, O, *spatial'), or (N, *, C) -> (N, *, O)."""
        if not self.windows:
            return self.bias.expand(*x.shape[:-1], self.channels)
        sizes = [list(x.shape[2:])]
        for window in self.windows:
            sizes.append(_size(sizes[-1], window))
        if self.weight is None:
            plane = self.bias.view(-1, *[1] * len(sizes[-1])).expand(1, self.channels, *sizes[-1])
        else:
            plane = self._plane(sizes[-2], self.weight)
        return plane.expand(x.shape[0], *plane.shape[1:])

    def _plane(self, size: list[int], weight: Tensor) -> Tensor:
        """The map (1, O, *spatial') over ones of a size; on the CPU the last one is kept while nothing changes.

        Without, the map took 25 µs of each forward pass of a small network, more than a convolution at batch 1. The
        parameters are compared by value (2 µs): a version counter misses what changes through ``.data``.
        """
        _, stride, padding, dilation, *more = self.windows[-1]
        keeps = not (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or weight.device.type != "cpu"
            or torch.is_autocast_enabled("cpu")
        )
        if keeps and self._last is not None and self._last.fits(size, weight, self.bias):
            return self._last.plane
        ones = weight.new_ones(1, 1, *size)
        if more:
            turn = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(stride) - 1]
            plane = turn(ones, weight.transpose(0, 1), self.bias, stride, padding, more[0], dilation=dilation)
        else:
            convolve = (F.conv1d, F.conv2d, F.conv3d)[len(stride) - 1]
            plane = convolve(ones, weight, self.bias, stride, padding, dilation)
        if keeps:
            self._last = _Last(size, weight.detach().clone(), self.bias.detach().clone(), plane)
        return plane

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def extra_repr(self) -> str:
        return f"{self.channels}, windows={self.windows}, bordered={self.weight is not None}"


def _size(before: list[int], window: list[list[int]]) -> list[int]:
    """The sizes behind a convolution, or a transposed one, which has an output padding."""
    if len(window) == 4:
        return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(before, *window, strict=True)]
    return [(n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, d, o in zip(before, *window, strict=True)]


class FixedSizes(nn.Module):
    """Its input, if that has the sizes that a collapsed model was made for: others are an error, not a wrong number.

    Args:
        input: name of the model's input.
        sizes: the shape, with None for a size that may be any: the batch.
    """

    def __init__(self, input: str, sizes: Sequence[int | None]) -> None:
        super().__init__()
        self.input, self.sizes = str(input), [None if size is None else int(size) for size in sizes]

    def forward(self, x: Tensor) -> Tensor:
        """Any tensor of the sizes -> the same; raises a LayerCollapseError for others."""
        if x.ndim != len(self.sizes) or any(a is not None and a != b for a, b in zip(self.sizes, x.shape, strict=True)):
            raise LayerCollapseError(
                f"{self.input}: this collapsed model was made for sizes of {in_words(self.sizes)}, got "
                f"{in_words(x.shape)}; collapse it again with example inputs of that size"
            )
        return x

    def extra_repr(self) -> str:
        return f"{self.input!r}, {in_words(self.sizes)}"


class FixedValue(nn.Module):
    """A check that an input that is no tensor is what a collapsed model was made for: its graph has the effects.

    Args:
        input: name of the model's input.
    """

    _is_impure = True  # nothing reads what it gives, and torch.fx is not to drop it

    def __init__(self, input: str) -> None:
        super().__init__()
        self.input = str(input)

    def forward(self, value: Any, expected: Any) -> None:
        """Raises a LayerCollapseError unless the two are equal."""
        if isinstance(value, Tensor) or value != expected:
            raise LayerCollapseError(
                f"{self.input}: this collapsed model was made for {expected!r}, got "
                f"{'a tensor' if isinstance(value, Tensor) else repr(value)}; collapse it again with that"
            )

    def extra_repr(self) -> str:
        return repr(self.input)


def to_buffer(module: nn.Module, name: str) -> None:
    """Make a module's own parameter a buffer with the same values."""
    value = getattr(module, name).detach()
    delattr(module, name)
    module.register_buffer(name, value)


def in_words(sizes: Sequence[int | None]) -> str:
    """A shape, with N for a size that may be any: "(N, 3, 28, 28)"."""
    return "(" + ", ".join("N" if size is None else str(int(size)) for size in sizes) + ")"
