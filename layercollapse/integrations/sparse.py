"""Sparse checkpoints: safetensors whose zeros are the mask, as llm-compressor and Torch-Pruning scripts write them.

from layercollapse.integrations import sparse

sparse.load(model, "sparse-model")   # a file, or a folder with model.safetensors or its index; zeros stay zeros
pruner = lc.Pruner(model, example_inputs)   # goes on from them
sparse.save(model, "sparse-model-2/model.safetensors")
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from layercollapse._util.files import atomic, read_json
from layercollapse.errors import LayerCollapseError

_FILE = "model.safetensors"
_INDEX = f"{_FILE}.index.json"


def masks(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The masks of a checkpoint: name of a floating-point tensor with two dimensions or more -> where it is not zero.

    Args:
        path: a safetensors file, or a folder with ``model.safetensors`` or the shards of its index.

    Raises:
        LayerCollapseError: the files are missing or damaged, or the weights are compressed.
    """
    return _kept(_tensors(path))


def load(model: nn.Module, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Load a checkpoint's weights, zeros and all.

    Args:
        model: changed in place; tensors that are tied may be missing in the file.
        path: as for `masks`.

    Returns:
        The checkpoint's masks, see `masks`.

    Raises:
        LayerCollapseError: as for `masks`, or the tensors are not the model's. Nothing has changed.
    """
    tensors, own = _tensors(path), model.state_dict()
    stored = {value.data_ptr() for name, value in own.items() if name in tensors}
    missing = [name for name, value in own.items() if name not in tensors and value.data_ptr() not in stored]
    strange = [name for name in tensors if name not in own]
    shapes = [name for name, value in tensors.items() if name in own and value.shape != own[name].shape]
    for what, names in (("that are not missing", missing), ("of the model", strange), ("of its shapes", shapes)):
        if names:
            raise LayerCollapseError(
                f"path: expected tensors {what}, got {', '.join(names[:3])} in {os.fspath(path)!r}"
            )
    model.load_state_dict(tensors, strict=False)
    return _kept(tensors)


def apply(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Zero the weights that masks clear: those of another checkpoint of the same network, say.

    Raises:
        LayerCollapseError: a mask is of no parameter, or not of its shape. Nothing has changed.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            of = tuple(parameters[name].shape) if name in parameters else "no parameter"
            raise LayerCollapseError(f"masks: expected those of parameters, got {name!r} {tuple(mask.shape)} for {of}")
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].masked_fill_(~mask.to(parameters[name].device), 0)


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model's state as one safetensors file, with its zeros; its folder is made if it is missing.

    Raises:
        LayerCollapseError: the file cannot be written.
    """
    file, state, seen = Path(path), {}, set[Any]()
    for name, value in model.state_dict().items():
        place = (value.data_ptr(), value.shape, value.stride())
        if value.numel() and place in seen:
            continue  # tied to one that is there: safetensors stores none twice
        seen.add(place)
        state[name] = value.detach().contiguous().clone()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic(file) as temporary:
            save_file(state, temporary, {"format": "pt"})
    except OSError as error:
        raise LayerCollapseError(f"path: expected a file that can be written, got {str(file)!r} ({error})") from error


def _kept(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value != 0 for name, value in tensors.items() if value.is_floating_point() and value.ndim > 1}


def _tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    place = Path(path)
    files = [place]
    if place.is_dir():
        files = [place / _FILE]
        if not files[0].is_file() and (place / _INDEX).is_file():
            index = read_json(place / _INDEX, "path")
            names = index.get("weight_map") if isinstance(index, dict) else None
            if not isinstance(names, dict) or any(Path(str(name)).name != name for name in names.values()):
                raise LayerCollapseError(f"path: expected an index of files beside it, got {str(place / _INDEX)!r}")
            files = [place / name for name in sorted(set(names.values()))]
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise LayerCollapseError(
                f"path: expected a safetensors file, or a folder with {_FILE} or its index, got {os.fspath(place)!r} "
                f"({error})"
            ) from error
    packed = [name for name in tensors if name.endswith((".bitmask", ".weight_packed"))]
    if packed:
        raise LayerCollapseError(
            f"path: expected dense tensors with zeros, got compressed ones such as {packed[0]!r}; save the model with "
            "save_compressed=False"
        )
    return tensors
