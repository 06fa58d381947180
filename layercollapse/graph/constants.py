"""Values that a model's Python reads from its own buffers, as imports of ONNX do: ``x.reshape(self.shape.tolist())``.

While a model is exported its buffers have no values. Here they have: what is read from a buffer, or from what is made
of buffers alone, is a number of the graph, as it would be if it had been written in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakIdKeyDictionary

# Methods of a tensor that give Python values.
_READS = ("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__complex__")


# Parts of the names of functions whose values are others at every call.
_RANDOM = ("rand", "bernoulli", "multinomial", "normal", "dropout", "poisson", "exponential")


class ReadBuffers(TorchFunctionMode):
    """Computes, beside what is traced, the values of all that depends on a model's buffers alone.

    Args:
        model: the model.

    Attributes:
        read: whether any value was read.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.read = False
        self._changed = False  # whether something with a value was changed in place: views of it may be anywhere
        self._model = model
        self._buffers: Mapping[str, Tensor] = {name: buffer.detach() for name, buffer in model.named_buffers()}
        self._known = WeakIdKeyDictionary()  # tensor of the trace -> tensor with values

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = getattr(func, "__name__", "")
        if _changes(name):
            self._changed = self._changed or any(self._value(leaf) is not None for leaf in leaves[:1])
        elif leaves and not any(part in name for part in _RANDOM) and all(self._value(x) is not None for x in leaves):
            with _disable_current_modes(), torch.no_grad():
                given, named = pytree.tree_map_only(Tensor, self._value, (args, kwargs))
                value = func(*given, **named)
            if name in _READS:
                self.read = True
                return value
            result = func(*args, **kwargs)
            for new, known in zip(pytree.tree_leaves(result), pytree.tree_leaves(value), strict=False):
                if isinstance(new, Tensor) and isinstance(known, Tensor):
                    self._known[new] = known
            return result
        return func(*args, **kwargs)

    def _value(self, tensor: Tensor) -> Tensor | None:
        if self._changed:
            return None
        if tensor not in self._known:
            for name, buffer in self._model.named_buffers():
                if buffer is tensor and name in self._buffers:
                    self._known[tensor] = self._buffers[name]
        if tensor not in self._known and _plain(tensor):
            self._known[tensor] = tensor  # an attribute of a module that is no buffer
        return self._known.get(tensor)


def _plain(tensor: Tensor) -> bool:
    """Whether a tensor has values itself, and is not part of a trace."""
    wrapped = torch._is_functional_tensor(tensor) or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return type(tensor) is Tensor and not tensor.is_meta and not wrapped


def _changes(name: str) -> bool:
    """Whether a function of that name changes its first argument."""
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in ("__invert__", "__index__", "__int__"))
    return name.endswith("_")
