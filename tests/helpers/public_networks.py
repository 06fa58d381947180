"""torchvision and timm for tests: skipped where they are not installed, imported beside the CPU build of torch."""

from __future__ import annotations

import importlib
import importlib.util

import pytest
import torch

_OPERATORS: list[torch.library.Library] = []  # they go with the object


def torchvision_or_skip() -> None:
    """Make `import torchvision` work: its wheels are for CUDA, and miss two operators beside another torch."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("needs torchvision")
    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # operator torchvision::nms does not exist
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _OPERATORS.append(library)
        importlib.import_module("torchvision")
