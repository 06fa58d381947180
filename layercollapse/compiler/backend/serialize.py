"""Save a collapsed model and load it again, without pickle and without the class it came from.

``model.json`` is the graph (nodes, modules, output containers), ``model.safetensors`` the tensors, ``model.pt2`` the
same model for `torch.export.load`, which needs nothing of this package.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import fx, nn

from layercollapse._util.devices import on_cpu
from layercollapse._util.files import atomic
from layercollapse._util.modes import evaluating
from layercollapse.compiler.backend.containers import plain
from layercollapse.compiler.backend.contract import Loss, Outputs
from layercollapse.compiler.backend.graph_json import describe, rebuild, tied_names
from layercollapse.compiler.backend.onnx import save_onnx
from layercollapse.compiler.backend.shape_guard import Case, other_cases, takes
from layercollapse.errors import LayerCollapseError
from layercollapse.graph.agreement import tensors_of
from layercollapse.graph.export import call_arguments, copied, export, unwarned

FORMAT, VERSION = "layercollapse.model", 1
# What a file that is none of a model ends in.
_DAMAGED = (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError, RecursionError)


@on_cpu()
def save(model: nn.Module, folder: str | os.PathLike[str], example_inputs: Any, onnx: bool = False) -> None:
    """Write a collapsed model into a folder, which is made if it is missing; all of it, or nothing.

    What it writes can be loaded: the model is built anew from it before any file is put in its place.

    Args:
        model: the `model` of a `CollapseResult`, retrained or not.
        folder: where ``model.safetensors``, ``model.json`` and ``model.pt2`` go. The ``model.pt2`` takes the arguments
            of the example, and gives plain tuples, lists and dicts, whose keys are texts where torch's format has none
            of theirs, so that torch alone reads it; classes of outputs, optional arguments and the loss of `labels`
            are in the ``model.json``.
        example_inputs: what to export with; the batch, and every size that the model takes others of, stays dynamic.
            Where torch cannot export it so, a warning says which files are of the example's sizes.
        onnx: whether to write ``model.onnx``, too, checked with ONNX Runtime; needs ``layercollapse[export]``.

    Raises:
        LayerCollapseError: the model is not a collapsed one, it has an operation that no file may name or that has no
            ONNX form, or the folder cannot be written.
    """
    if not isinstance(model, fx.GraphModule):
        raise LayerCollapseError(f"model: expected the model of a CollapseResult, got {type(model).__name__}")
    text = json.dumps({"format": FORMAT, "version": VERSION, **describe(model)}, indent=1, allow_nan=False)
    tied = tied_names(model)
    state = {name: value for name, value in model.state_dict().items() if name not in tied}
    # safetensors has no complex128.
    state = {name: torch.view_as_real(value.detach()) if value.is_complex() else value for name, value in state.items()}
    tensors = {name: value.detach().contiguous().clone() for name, value in state.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that `load` may be given
            rebuild(json.loads(text), tensors)
    except _DAMAGED as error:
        raise LayerCollapseError(f"model: expected one that can be loaded again, got {error}") from error
    args, kwargs = call_arguments(example_inputs)
    cases = other_cases(model, args, kwargs)
    exported, program, takes_all = _exported(model, args, kwargs, cases)
    fixed = [] if takes_all else ["model.pt2"]
    folder = Path(folder)
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as files:
            paths = [files.enter_context(atomic(folder / f"model.{end}")) for end in ("safetensors", "pt2", "json")]
            save_file(tensors, paths[0], {"format": FORMAT})
            paths[1].write_bytes(program)
            paths[2].write_text(text, encoding="utf-8")
            if onnx and not save_onnx(model, folder / "model.onnx", example_inputs, exported=exported, cases=cases):
                fixed.append("model.onnx")
    except BaseException as error:
        with suppress(OSError):
            for path in new:
                path.rmdir()
        if not isinstance(error, OSError):
            raise
        raise LayerCollapseError(f"folder: expected one that can be written, got {str(folder)!r} ({error})") from error
    if fixed:
        warnings.warn(
            f"{' and '.join(fixed)} in {str(folder)!r} may refuse inputs of other sizes than the example's, which the "
            "model takes, and its model.json",
            stacklevel=3,
        )


def _exported(
    model: fx.GraphModule, args: tuple, kwargs: dict[str, Any], cases: list[Case]
) -> tuple[torch.export.ExportedProgram, bytes, bool]:
    """The model as torch exports it, the file of that, and whether it takes every case.

    Maps that have one pixel in the example would have one for good: then it is exported with the arguments of a case.
    """
    model = _with_plain_outputs(model)
    first: tuple[torch.export.ExportedProgram, bytes, bool] | None = None
    if cases:
        with evaluating(model), torch.no_grad():
            cases = [(args, kwargs, tensors_of(model(*copied(args), **copied(kwargs)))), *cases]
        for some in cases[:2]:
            exported = _export(model, some[0], some[1], sizes=True)
            try:
                attempt = exported, _file(exported), takes(exported.module(), cases)
            except Exception:  # torch has no common class of them: it cannot write the floor of a size
                break
            if attempt[2]:
                return attempt
            first = first or attempt
        if first is not None:
            return first
    exported = _export(model, args, kwargs, sizes=False if cases else None)
    try:
        return exported, _file(exported), not cases
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise LayerCollapseError(f"model: torch.export cannot write it: {lines[0]}") from error


def _export(
    model: fx.GraphModule, args: tuple, kwargs: dict[str, Any], sizes: bool | None
) -> torch.export.ExportedProgram:
    with evaluating(model), unwarned(), torch.no_grad():
        exported = export(model, args, kwargs, sizes)
    # Else the file holds the example, and with one that is a slice of a data set all of the data.
    exported.example_inputs = None
    return exported


def _file(exported: torch.export.ExportedProgram) -> bytes:
    file = io.BytesIO()
    torch.export.save(exported, file)
    return file.getvalue()


def _with_plain_outputs(model: fx.GraphModule) -> fx.GraphModule:
    """The model with outputs in tuples, lists and dicts of texts and numbers, and without the loss of its labels.

    Torch reads it so where no class is known that the outputs are of.
    """
    output = next(node for node in model.graph.nodes if node.op == "output")
    value: Any = output.args[0]
    unread = list[fx.Node]()
    if isinstance(_called(model, value), Loss):
        unread.append(value)
        value = value.args[0]
    packing = _called(model, value)
    if isinstance(packing, Outputs):
        unread.append(value)
        value = plain(packing.spec, value.args[0])
    else:
        leaves, spec = pytree.tree_flatten(value)
        value = plain(spec, leaves)
    if repr((value,)) == repr(output.args):
        return model
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(model.graph, new)
    graph.output(fx.map_arg(value, new.__getitem__))
    for node in unread:
        graph.erase_node(new[node])
    return fx.GraphModule(model, graph, class_name="Collapsed").eval()


def _called(model: fx.GraphModule, node: Any) -> nn.Module | None:
    called = isinstance(node, fx.Node) and node.op == "call_module"
    return model.get_submodule(str(node.target)) if called else None


@torch.inference_mode(False)
def load(path: str | os.PathLike[str], classes: Sequence[type] = ()) -> fx.GraphModule:
    """Load a model that `save` wrote, from its ``model.json`` and ``model.safetensors``.

    Nothing in the files is executed, and nothing imported but output classes of transformers, where that is installed.

    Args:
        path: the folder, or its ``model.json``.
        classes: dataclasses and named tuples of yours that its outputs are of. Without them outputs are plain dicts
            and tuples with the same keys in the same order, and a warning names the class.

    Returns:
        The module, in evaluation mode, with the dtypes it was saved with, on the CPU.

    Raises:
        LayerCollapseError: a file is missing, truncated, of another format or version, or names anything but the
            operations of a collapsed model.
    """
    if not isinstance(classes, Sequence) or not all(isinstance(kind, type) for kind in classes):
        raise LayerCollapseError(f"classes: expected a list of classes, got {classes!r}")
    path = Path(path)
    folder = path.parent if path.is_file() or (path.name == "model.json" and not path.is_dir()) else path
    try:
        text = (folder / "model.json").read_text(encoding="utf-8")
        tensors = load_file(folder / "model.safetensors")
    except (OSError, UnicodeDecodeError, SafetensorError) as error:
        raise LayerCollapseError(
            f"path: expected a folder with a whole model.json and model.safetensors, got {str(folder)!r} ({error})"
        ) from error
    try:
        described = json.loads(text)
        if not isinstance(described, dict) or described.get("format") != FORMAT:
            raise LayerCollapseError(f"it is no {FORMAT} file")
        if described.get("version") != VERSION:
            raise LayerCollapseError(f"its version is {described.get('version')!r}, this release reads {VERSION}")
        return rebuild(described, tensors, classes)
    except LayerCollapseError as error:
        raise LayerCollapseError(f"path: cannot load {str(folder / 'model.json')!r}: {error}") from error
    except _DAMAGED as error:
        raise LayerCollapseError(
            f"path: {str(folder / 'model.json')!r} is damaged: {type(error).__name__}: {error}"
        ) from error
