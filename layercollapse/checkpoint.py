"""The weights of a run's steps on disk: `checkpoints/step-03.safetensors` and the pruner's masks beside it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from layercollapse.errors import LayerCollapseError
from layercollapse.files import atomic, writable_folder
from layercollapse.prune import Pruner

FOLDER = "checkpoints"


def path(folder: Path, step: int) -> Path:
    """Where the weights of a step are."""
    return folder / FOLDER / f"step-{step:02d}.safetensors"


def _masks_path(folder: Path, step: int) -> Path:
    return folder / FOLDER / f"step-{step:02d}.masks.safetensors"


def save(folder: Path, step: int, model: nn.Module, pruner: Pruner) -> None:
    """Write the weights and the masks of a step."""
    writable_folder(folder / FOLDER)
    with atomic(path(folder, step)) as temporary:
        safetensors.torch.save_model(model, str(temporary))
    with atomic(_masks_path(folder, step)) as temporary:
        safetensors.torch.save_file(pruner.state_dict(), str(temporary))


def load(folder: Path, step: int, model: nn.Module, pruner: Pruner | None = None) -> None:
    """Put the weights of a step into the model, and its masks into the pruner.

    Raises:
        LayerCollapseError: a file is missing, damaged, or of another model.
    """
    file = path(folder, step)
    try:
        safetensors.torch.load_model(model, str(file))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise LayerCollapseError(f"run: expected the weights of step {step} in {file}, got: {error}") from error
    if pruner is not None:
        pruner.load_state_dict(_load_tensors(_masks_path(folder, step)))


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
