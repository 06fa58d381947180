"""ONNX files on the command line: `layercollapse collapse FILE.onnx`, and what a file says of its inputs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from layercollapse._util.files import writable_folder
from layercollapse.errors import LayerCollapseError, require

if TYPE_CHECKING:
    import click
else:
    click = require("click", "run")

_SAMPLES = "FILE.onnx: a .npy of inputs (N, ...) to measure the entropies on."
_OUT = "FILE.onnx: folder for what comes of it.  [default: FILE]"


def file_options(command: Callable) -> Callable:
    """The options of an ONNX file."""
    out = click.option("--out", type=click.Path(path_type=Path), help=_OUT)
    return click.option("--samples", type=click.Path(path_type=Path), help=_SAMPLES)(out(command))


def collapsed_file(path: Path, samples: Path | None, out: Path | None, *, mode: str, tolerance: float) -> bool:
    """Collapse an ONNX file and write what comes of it; False for what is no such file.

    Raises:
        LayerCollapseError: options of a file with something else.
    """
    if path.suffix != ".onnx":
        if samples is not None or out is not None:
            raise LayerCollapseError(f"run: expected a FILE.onnx for --samples and --out, got {str(path)!r}")
        return False
    from layercollapse.integrations import onnx  # with what it needs

    result = onnx.collapse(path, samples, mode=mode, tolerance=tolerance)
    folder = writable_folder(out or path.with_suffix(""))
    result.save(folder, onnx=True)
    click.echo(result.explain())
    click.echo(f"model: {folder / 'model.onnx'}, model.safetensors (layercollapse.load), model.pt2 (torch alone)")
    return True


def input_shapes(path: str | Path) -> list[list[int | str]]:
    """Sizes of the inputs that a file declares: numbers, or the names of those that are open.

    Raises:
        LayerCollapseError: onnx is not installed, or the file is none of ONNX.
    """
    graph = importlib.import_module("layercollapse.integrations.onnx").read(path).graph
    weights = {weight.name for weight in graph.initializer}
    given = (one.type.tensor_type.shape.dim for one in graph.input if one.name not in weights)
    return [[dim.dim_value or dim.dim_param for dim in dims] for dims in given]


def fixed_batch(path: str | Path) -> int | None:
    """The number of samples that a file takes; None for any. Raises as `input_shapes`."""
    first = next((sizes[0] for sizes in input_shapes(path) if sizes), None)
    return first if isinstance(first, int) else None


def open_sizes(path: str | Path, shape: tuple[int, int, int] | None) -> dict[str, int]:
    """Sizes for what a file leaves open of images (N, C, H, W), by name. Raises as `input_shapes`."""
    images = [sizes[1:] for sizes in input_shapes(path) if len(sizes) == 4]
    pairs = [pair for sizes in images for pair in zip(sizes, shape or (), strict=False)]
    return {name: size for name, size in pairs if isinstance(name, str) and name}
