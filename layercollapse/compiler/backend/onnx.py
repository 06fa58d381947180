"""Write a collapsed model as ONNX, and believe it only after ONNX Runtime has run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from layercollapse._util.files import atomic
from layercollapse._util.modes import evaluating
from layercollapse.compiler.backend.shape_guard import Case, takes
from layercollapse.errors import LayerCollapseError, require
from layercollapse.graph.export import call_arguments, export, unwarned


def save_onnx(
    model: nn.Module,
    path: Path,
    example_inputs: Any,
    tolerance: float = 1e-4,
    *,
    exported: torch.export.ExportedProgram | None = None,
    cases: Sequence[Case] = (),
) -> bool:
    """Export to ONNX with a dynamic batch, run the file, compare, and only then put it in its place.

    Args:
        model: any module that `torch.export` can capture.
        path: of the file.
        example_inputs: what to export and to compare with.
        tolerance: largest difference of any output, relative to the largest output or to 1.
        exported: the model as torch exports it, if it has been.
        cases: arguments of other sizes that the model takes, and what it gives.

    Returns:
        Whether the file takes these, too.

    Raises:
        LayerCollapseError: ``layercollapse[export]`` is not installed, an operation has no ONNX form, or ONNX Runtime
            gives something else.
    """
    for module in ("onnx", "onnxscript"):
        require(module, "export")
    runtime = require("onnxruntime", "export")
    args, kwargs = call_arguments(example_inputs)
    with evaluating(model), unwarned(), torch.no_grad():
        expected = [t for t in pytree.tree_leaves(model(*args, **kwargs)) if isinstance(t, Tensor)]
        try:
            program = torch.onnx.export(exported or export(model, args, kwargs), dynamo=True, verbose=False)
        except Exception as error:  # the exporter has no common class of errors
            message = str(error).strip().splitlines() or [type(error).__name__]
            raise LayerCollapseError(f"model: ONNX has no form for it: {message[0]}") from error
    assert program is not None
    with atomic(path) as temporary:
        program.save(str(temporary))
        try:
            session = runtime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])

            def run(*args: Any, **kwargs: Any) -> list[Tensor]:
                tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
                feeds = {slot.name: t.cpu().numpy() for slot, t in zip(session.get_inputs(), tensors, strict=True)}
                return [torch.as_tensor(np.asarray(result)) for result in session.run(None, feeds)]

            results = run(*args, **kwargs)
        except Exception as error:  # nor has ONNX Runtime: a float64 convolution is not implemented, for instance
            raise LayerCollapseError(f"model: ONNX Runtime cannot run it: {str(error).strip()}") from error
        _compare(expected, results, tolerance, "")
        if not takes(run, list(cases)):
            return False
        for args, kwargs, wanted in cases:
            given = [t for t in run(*args, **kwargs) if t.is_floating_point()]
            if len(given) == len(wanted):
                _compare(wanted, given, tolerance, " with inputs of other sizes")
        return True


def _compare(expected: Sequence[Tensor], results: Sequence[Tensor], tolerance: float, where: str) -> None:
    for want, got in zip(expected, results, strict=True):
        reference = want.detach().cpu().float().numpy()
        difference = float(np.abs(reference - np.asarray(got, dtype=np.float32)).max(initial=0.0))
        if not difference <= tolerance * max(1.0, float(np.abs(reference).max(initial=0.0))):
            raise LayerCollapseError(f"model: ONNX Runtime differs{where} by {difference:.3g}, more than {tolerance:g}")
