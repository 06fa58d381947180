"""Which tensors of a model and of its inputs have values that can be read: no meta, lazy, sparse or quantized ones."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from layercollapse.errors import LayerCollapseError


def check_values(model: nn.Module, *inputs: object) -> None:
    """Raise unless every tensor of a model has a shape and values, and every input is a dense tensor with values."""
    for name, value in _named(model):
        if is_lazy(value):
            raise LayerCollapseError(
                f"model: expected parameters with a shape, got the lazy {name!r}; call the model once"
            )
        if value.is_meta:
            raise LayerCollapseError(f"model: expected tensors with values, got {name!r} on the meta device")
        if value.is_inference() and value.requires_grad:
            raise LayerCollapseError(
                f"model: expected parameters that can be trained, got {name!r}, made inside torch.inference_mode()"
            )
    for value in pytree.tree_leaves(inputs):
        if isinstance(value, Tensor) and (value.is_meta or _undense(value)):
            raise LayerCollapseError(f"example_inputs: expected dense tensors with values, got {describe(value)}")


def undense(model: nn.Module) -> str | None:
    """The first tensor or module of a model that is sparse or quantized, in words; None without one."""
    for name, value in _named(model):
        if _undense(value):
            return f"{name!r}, {describe(value)}"
    for name, module in model.named_modules():
        if ".quantized" in type(module).__module__:
            return f"the quantized {type(module).__name__} {name!r}"
    return None


def _undense(value: Tensor) -> bool:
    return value.layout != torch.strided or value.is_quantized


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def raw_bytes(tensor: Tensor) -> Tensor:
    """The values of a dense tensor as uint8 (bytes,): -0 is not 0 in them, and NaN is the same as NaN."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)


def describe(value: object) -> str:
    """Return what came, in one line, for the end of a message."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    dtype = str(value.dtype).removeprefix("torch.")
    if value.is_nested and value.layout == torch.strided:  # asking for its shape is an error
        return f"a nested {dtype} tensor on {value.device}"
    dense = "" if value.layout != torch.strided or value.is_contiguous() else f", strides {value.stride()}"
    sparse = "" if value.layout == torch.strided else f", layout {value.layout}"
    return f"{dtype} of shape {tuple(value.shape)}{dense}{sparse} on {value.device}"
