"""The states of optimizers, schedulers and generators in a file, or told to other processes; without pickle."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from layercollapse._util.files import atomic
from layercollapse.errors import LayerCollapseError

_HEADER = "layercollapse.state"
_PLAIN = (bool, int, float, str, type(None))


def dumped(state: Any) -> bytes:
    """A state, as `save` takes it, as bytes.

    Raises:
        LayerCollapseError: something else is in it.
    """
    return safetensors.torch.save(*_packed(state))


def loaded(data: bytes) -> Any:
    """What `dumped` was given."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])["__metadata__"]
    return _decoded(json.loads(header[_HEADER]), safetensors.torch.load(data))


def save(file: Path, state: Any) -> None:
    """Write a state: tensors, NumPy numbers, numbers, texts, None, and lists, tuples and dicts of them.

    A tensor that is there twice is written twice.

    Raises:
        LayerCollapseError: something else is in it, the message says where; or the file cannot be written.
    """
    write(file, *_packed(state))


def write(file: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None) -> None:
    """Write tensors by name, and a header; the folder is made if it is missing.

    Raises:
        LayerCollapseError: it cannot be written; what was there is as it was.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic(file) as temporary:
            safetensors.torch.save_file(dict(tensors), str(temporary), dict(header or {}) or None)
    except (OSError, safetensors.SafetensorError) as error:
        raise LayerCollapseError(f"out: expected room and permission to write {file}, got: {error}") from error


def load(file: Path) -> Any:
    """Read a state.

    Raises:
        LayerCollapseError: no such file, or not one of these.
    """
    try:
        with safetensors.safe_open(str(file), framework="pt") as opened:
            header = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return _decoded(json.loads(header[_HEADER]), tensors)
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise LayerCollapseError(f"out: expected a state that a run has written in {file}, got: {error}") from error


def _packed(state: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a state, each with memory of its own as safetensors wants it, and a header with the rest."""
    tensors: dict[str, Tensor] = {}
    header = {_HEADER: json.dumps(_encoded(state, "state", tensors))}
    taken = set[int]()
    return {name: _own(value, taken) for name, value in tensors.items()}, header


def _encoded(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """JSON of a value, in which tensors are numbers of those that it adds to."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized or value.is_complex():
            raise LayerCollapseError(f"{where}: expected dense real tensors, got one of {value.dtype}, {value.layout}")
        name = str(len(tensors))
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        try:
            numbers = torch.from_numpy(np.array(value, order="C"))
        except (TypeError, ValueError) as error:  # texts, objects, bytes in the other order
            raise LayerCollapseError(f"{where}: expected arrays of numbers, got one of {value.dtype}") from error
        return {"array": _encoded(numbers, where, tensors)["tensor"]}
    if type(value) in _PLAIN:
        return value
    if type(value) in (list, tuple):
        return {type(value).__name__: [_encoded(x, f"{where}[{i}]", tensors) for i, x in enumerate(value)]}
    if isinstance(value, Mapping):
        kind = "counter" if type(value) is Counter else "dict"  # MultiStepLR has its milestones in one
        for key in value:
            if type(key) not in _PLAIN:
                raise LayerCollapseError(f"{where}: expected keys that are texts or numbers, got {key!r}")
        return {kind: [[key, _encoded(x, f"{where}[{key!r}]", tensors)] for key, x in value.items()]}
    raise LayerCollapseError(
        f"{where}: expected tensors, numbers, texts, None, and lists, tuples and dicts of them, got a "
        f"{type(value).__name__}"
    )


def _own(value: Tensor, taken: set[int]) -> Tensor:
    """The tensor, or a copy of it where it is not contiguous or its memory is taken, to which its own is added."""
    whole = value.is_contiguous() and value.untyped_storage().nbytes() == value.numel() * value.element_size()
    if not whole or (value.numel() and value.data_ptr() in taken):
        return value.clone(memory_format=torch.contiguous_format)
    taken.add(value.data_ptr())
    return value


def _decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind in ("dict", "counter"):
        found = {key: _decoded(x, tensors) for key, x in content}
        return Counter(found) if kind == "counter" else found
    return (tuple if kind == "tuple" else list)(_decoded(x, tensors) for x in content)


def random_state() -> dict[str, Any]:
    """The states of the global random number generators of torch (the CPU, CUDA devices), NumPy and Python."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": devices,
        "numpy": np.random.get_state(),  # noqa: NPY002
        "python": random.getstate(),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators into an earlier state."""
    torch.set_rng_state(state["torch"])
    if gpus := state["cuda"][: torch.cuda.device_count()]:  # there may have been more of them
        torch.cuda.set_rng_state_all(gpus)
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])


def seed(number: int) -> None:
    """Seed the global generators of torch, NumPy and Python."""
    torch.manual_seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002
    random.seed(number)
