"""`layercollapse collapse FILE.onnx`: the options, and what the command does."""

from __future__ import annotations

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
