"""The weights of a run's steps on disk: `checkpoints/step-03.safetensors` and the pruner's masks beside it.

A file has the state of the model as safetensors can hold it: every tensor once and contiguous, complex ones as their
real and imaginary parts, and extra state (`torch.nn.Module.get_extra_state`) as JSON in the file's header.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from layercollapse._util.ranks import Ranks
from layercollapse._util.tensors import raw_bytes
from layercollapse.errors import LayerCollapseError
from layercollapse.pipeline.states import write
from layercollapse.prune.pruner import Pruner, lines_in

FOLDER = "checkpoints"

# Keys of the header; others are names of tensors that are the tensor of another name, as `safetensors.torch` has them.
_COMPLEX, _EXTRA = "layercollapse.complex", "layercollapse.extra"
_WRAPPERS = ("module.", "_orig_mod.")


def path(folder: Path, step: int) -> Path:
    """Where the weights of a step are."""
    return folder / FOLDER / f"step-{step:02d}.safetensors"


def _masks_path(folder: Path, step: int) -> Path:
    return folder / FOLDER / f"step-{step:02d}.masks.safetensors"


def save(folder: Path, step: int, model: nn.Module, pruner: Pruner, ranks: Ranks | None = None) -> None:
    """Write the weights and the masks of a step, on the first of the processes that have the model.

    Raises:
        LayerCollapseError: something in the model's state cannot be written, or a file; the message names it.
    """
    masks = pruner.state_dict()

    def work() -> None:
        tensors, header = packed(model)
        write(path(folder, step), tensors, header)
        write(_masks_path(folder, step), masks)

    (ranks or Ranks()).on_first(work)


def load(folder: Path, step: int, model: nn.Module, pruner: Pruner | None = None) -> None:
    """Put the weights of a step into the model, and its masks into the pruner.

    Raises:
        LayerCollapseError: a file is missing, damaged, or of another model.
    """
    file = path(folder, step)
    try:
        restore(model, *_read(file))
    except (OSError, RuntimeError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise LayerCollapseError(f"run: expected the weights of step {step} in {file}, got: {error}") from error
    if pruner is not None:
        pruner.load_state_dict(_load_tensors(_masks_path(folder, step)))


def lines(folder: Path, step: int) -> dict[str, Tensor]:
    """What `linearize` takes for the sites that were linear in a step; empty if there were none.

    Raises:
        LayerCollapseError: the file is missing or damaged.
    """
    return lines_in(_load_tensors(_masks_path(folder, step)))


def check(folder: Path, model: nn.Module, pruner: Pruner) -> None:
    """Write the state of a model into a folder and read it again, as a run will after each step.

    Raises:
        LayerCollapseError: something in it cannot be written or is not what was written; the message names it.
    """
    save(folder, 0, model, pruner)
    state, extra = _read(path(folder, 0))
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            same = torch.equal(raw_bytes(state[name]), raw_bytes(value.cpu()))
        else:
            same = _alike(extra[name], value)
        if not same:
            raise LayerCollapseError(f"model: expected a state that can be saved and read again, got another {name!r}")


def load_weights(file: str | Path, model: nn.Module) -> None:
    """Put trained weights into a model: safetensors, or a state dict that `torch.load` reads without running code.

    Raises:
        LayerCollapseError: no such file, or not the weights of this model.
    """
    with _named(file, "weights"):
        restore(model, *_state_of(file))


def load_fitting(file: str | Path, model: nn.Module) -> list[str]:
    """Put those weights of a file into a model that it has by their name and shape.

    Returns:
        The names of those that it has and the file has not, or of another shape: they stay as they are.

    Raises:
        LayerCollapseError: no such file, or none of its weights is the model's.
    """
    with _named(file, "init"):
        state, _ = _state_of(file)
        own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
        fitting = {
            name: state[name] for name, value in own.items() if name in state and state[name].shape == value.shape
        }
        if not fitting:
            raise ValueError(f"none of its {len(state)} tensors has a name and a shape of the model's {len(own)}")
        model.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting]


def _state_of(file: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the extra state in a file of weights."""
    try:
        return _read(Path(file))
    except safetensors.SafetensorError:
        return _state_in(torch.load(file, map_location="cpu", weights_only=True)), {}


@contextmanager
def _named(file: str | Path, argument: str) -> Iterator[None]:
    """The block, whose errors about a file of weights are of the argument."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        rest = " ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise LayerCollapseError(
            f"{argument}: expected safetensors, or a state dict that torch.load reads with weights_only=True, of this "
            f"model, got {str(file)!r}: {first} {rest}".rstrip()
        ) from error


def _state_in(loaded: Any) -> dict[str, Tensor]:
    """The state dict in what a training script saved, without the names of wrappers."""
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(name, str) for name in loaded):
        raise ValueError(f"a {type(loaded).__name__} is no state dict")
    state = dict(loaded)
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def packed(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state of a model as tensors that safetensors takes, and the header that says what else there is."""
    tensors, header, complexes, extra = dict[str, Tensor](), dict[str, str](), list[str](), dict[str, Any]()
    first: dict[tuple, str] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            if not _alike(_from_json(value), value):
                raise LayerCollapseError(
                    f"model: expected extra state that JSON holds (numbers, texts, lists and dicts of them), got a "
                    f"{type(value).__name__} for {name!r}"
                )
            extra[name] = value
            continue
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = "one without data" if value.is_meta else f"a {value.layout} one of {value.dtype}"
            raise LayerCollapseError(f"model: expected dense tensors to save, got {kind} for {name!r}")
        place = (value.data_ptr(), value.dtype, value.shape, value.stride(), value.is_conj(), value.is_neg())
        if value.numel() and first.setdefault(place, name) != name:
            header[name] = first[place]
            continue
        plain = value.detach().resolve_conj().resolve_neg()
        if plain.is_complex():
            complexes.append(name)
            plain = torch.view_as_real(plain)
        own = plain.is_contiguous() and plain.untyped_storage().nbytes() == plain.numel() * plain.element_size()
        tensors[name] = plain if own else plain.contiguous().clone()
    header |= {"format": "pt"}
    header |= {_COMPLEX: json.dumps(complexes)} if complexes else {}
    header |= {_EXTRA: json.dumps(extra)} if extra else {}
    return tensors, header


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the extra state in a file, by name."""
    with safetensors.safe_open(str(file), framework="pt") as opened:
        header = dict(opened.metadata() or {})
        state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return unpacked(state, header)


def unpacked(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the extra state in what `packed` gave."""
    state, header = dict(tensors), dict(header)
    header.pop("format", None)
    extra = json.loads(header.pop(_EXTRA, "{}"))
    for name in json.loads(header.pop(_COMPLEX, "[]")):
        # A copy: the view would not keep the file mapped that its values are in.
        state[name] = torch.view_as_complex(state[name].clone())
    state |= {alias: state[name] for alias, name in header.items() if name in state}
    return state, extra


def restore(model: nn.Module, state: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
    """Load a state; buffers whose elements share memory, which cannot be written to, get memory of their own."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if name in module._non_persistent_buffers_set or buffer is None:
                continue
            if any(s == 0 and n > 1 for s, n in zip(_strides(buffer), buffer.shape, strict=True)):
                module._buffers[name] = buffer.clone(memory_format=torch.contiguous_format)
    model.load_state_dict({**state, **extra})


def _strides(buffer: Tensor) -> tuple[int, ...]:
    return buffer.stride() if buffer.layout == torch.strided else (1,) * buffer.ndim


def _from_json(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return None


def _alike(read: Any, value: Any) -> bool:
    """Whether JSON gave back what was put in: a tuple is no list, and a key that is a number no text."""
    if isinstance(value, dict) and isinstance(read, dict):
        return list(read) == list(value) and all(_alike(read[key], value[key]) for key in value)
    if isinstance(value, list) and isinstance(read, list):
        return len(read) == len(value) and all(map(_alike, read, value))
    return type(read) is type(value) and bool(read == value)


def _load_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(str(file))
    except (OSError, safetensors.SafetensorError) as error:
        raise LayerCollapseError(f"run: expected the masks of a step in {file}, got: {error}") from error


def keep_only(folder: Path, steps: Collection[int]) -> None:
    """Delete the checkpoints of all other steps."""
    wanted = {file for step in steps for file in (path(folder, step), _masks_path(folder, step))}
    for file in (folder / FOLDER).glob("step-*.safetensors"):
        if file not in wanted:
            file.unlink()
