"""Where the header, the CMake package and the compiled libraries are, for programs in C and C++."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Literal

_HERE = Path(__file__).resolve().parent


def include_dir() -> Path:
    """Return the folder of ``layercollapse.h``."""
    return _HERE / "include"


def cmake_dir() -> Path:
    """Return the folder of ``layercollapse-config.cmake``, for ``-Dlayercollapse_DIR=``."""
    return _HERE / "cmake"


def library(part: Literal["cpu", "cuda"]) -> Path:
    """Return the shared library with the C functions of a part.

    Raises:
        LayerCollapseError: no such part, or it was not built.
    """
    from layercollapse_core import _error

    needs = {"cpu": "GCC or Clang", "cuda": "nvcc"}
    if part not in needs:
        raise _error(f"part: expected 'cpu' or 'cuda', got {part!r}")
    path = _HERE / f"_{part}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not path.exists():
        raise _error(f"part: expected a library at {path}, got none: install with {needs[part]}")
    return path
