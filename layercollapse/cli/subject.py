"""What `analyze` and `inspect` look at: a run, a folder that `result.save` wrote, a file, or a model by its name.

One rule tells them apart (`kind_of`): what the name ends in, then what lies in the folder of that name, then whether it
is the name of a model.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, nn

from layercollapse.cli.experiment import Job
from layercollapse.cli.onnx import fixed_batch, open_sizes
from layercollapse.cli.recipe import DataKeys, ModelKeys
from layercollapse.compiler.backend.serialize import load
from layercollapse.errors import LayerCollapseError
from layercollapse.graph.export import arguments_in
from layercollapse.pipeline import checkpoint
from layercollapse.report.record import FILE as RECORD
from layercollapse.report.record import Record
from layercollapse.zoo.data.text import TOKENS
from layercollapse.zoo.data.transforms import parsed_shape
from layercollapse.zoo.models import exported, sources

RUN, SAVED, ONNX, PROGRAM, MODEL = "run", "saved", "onnx", "program", "model"
_GRAPH, _PROGRAM = "model.json", "model.pt2"  # of a folder that `result.save` wrote
# Keys that say how a model is measured; those of `ModelKeys` say which, and have a use with the name of a model alone.
_MEASURING = {*DataKeys.model_fields, "device", "batch_size"}


def kind_of(name: str) -> str:
    """What a name stands for: ``"onnx"`` and ``"program"`` by what it ends in; ``"run"`` and ``"saved"`` for a folder
    with a run, or with what `result.save` wrote; ``"model"`` for the name of a model.

    Raises:
        LayerCollapseError: it is none of these, or a folder and a model.
    """
    path = Path(name)
    if path.suffix == ".onnx":
        return ONNX
    if path.suffix == exported.SUFFIX:
        return PROGRAM
    files = {RUN: RECORD, SAVED: _GRAPH}
    held = next((kind for kind, file in files.items() if (path / file).is_file()), None)
    if held is not None and sources.built_in(name):
        raise LayerCollapseError(
            f"model: expected one thing of this name, got {name!r}, which is a folder and a network: ./{name} is the "
            f"folder, --model {name} the network"
        )
    if held is not None:
        return held
    if sources.built_in(name) or (":" in name and not path.exists()):
        return MODEL
    found = f"a folder without these, {name!r}" if path.is_dir() else repr(name)
    raise LayerCollapseError(
        f"model: expected a folder with {RECORD} (of a run) or {_GRAPH} (of result.save), FILE.onnx, or a model "
        f"({sources.forms()}), got {found}"
    )


@dataclass(frozen=True)
class Whole:
    """The batches of a feed that have so many samples, for a model that takes no others."""

    feed: Iterable[Any]
    samples: int

    def __iter__(self) -> Iterator[Any]:
        return (batch for batch in self.feed if len(batch[1]) == self.samples)


@dataclass(frozen=True)
class Subject:
    """A model as it is on disk or by its name, not trained.

    Attributes:
        name: as the user gave it.
        kind: see `kind_of`.
        given: the keys that the user gave.
        weights: file of weights for it, or None.
    """

    name: str
    kind: str
    given: dict[str, Any]
    weights: str | None = None

    @classmethod
    def of(cls, name: str | None, given: dict[str, Any], weights: str | None) -> Subject:
        """What the arguments of a command say.

        Args:
            name: the argument; None where the model is in the keys.
            given: keys of a recipe.
            weights: a file.

        Raises:
            LayerCollapseError: no model or two, or a key that has no use with it.
        """
        if name is not None and "model" in given:
            raise LayerCollapseError(f"model: expected it once, got {name!r} and --model {given['model']}")
        # What --model says is a model, whatever else there is of the name.
        kind = kind_of(name) if name is not None else MODEL
        if name is None:
            name = str(given.get("model", ModelKeys.model_fields["model"].default))
            kind = PROGRAM if name.endswith(exported.SUFFIX) else MODEL
        allowed = _MEASURING | ({*ModelKeys.model_fields} if kind in (MODEL, PROGRAM) else set())
        if other := [key for key in given if key not in allowed]:
            raise LayerCollapseError(
                f"{other[0]}: expected no such key with {name!r}, which is not built or trained here, got "
                f"{given[other[0]]!r}"
            )
        if weights is not None and kind in (SAVED, ONNX):
            raise LayerCollapseError(f"weights: expected none with {name!r}, which has its own, got {weights!r}")
        return cls(name, kind, {key: value for key, value in given.items() if key != "model"}, weights)

    def with_batches(self) -> tuple[nn.Module, Iterable[Any], Any]:
        """The model in evaluation mode, batches of the training data, and two samples, all on the device.

        Raises:
            LayerCollapseError: no data, no such model, or they do not fit.
        """
        if self.kind not in (RUN, MODEL) and "data" not in self.given:
            raise LayerCollapseError(f"data: expected --data DATA, to measure {self.name} on, got none")
        fixed = None
        if self.kind == RUN:
            job, record = recorded(self.name, **self.given)
            model = job.load(self.name, chosen(record))
        else:
            job = self._job()
            if self.kind == ONNX:
                model, fixed = onnx().load(self.name), fixed_batch(self.name)
            else:
                model = load(self.name) if self.kind == SAVED else job.build(classifies=False)
        model = self._weighted(model).to(job.device)
        batches: Iterable[Any] = job.training_batches
        example: Any = job.example
        if fixed is not None:
            batches = Whole(job.dataset.train.batches(fixed), fixed)
            first = next(iter(batches), None)
            if first is None:
                raise LayerCollapseError(f"data: expected {fixed} samples or more, as {self.name} takes, got fewer")
            example = first[0] if isinstance(first[0], dict) else (first[0],)
        if isinstance(example, dict):
            example = arguments_in(example, model)
        job.tried(model, self.name, example)
        return model, batches, example

    def with_example(self) -> tuple[nn.Module, Any]:
        """The model in evaluation mode, and example inputs; without data where the shape of its input is known.

        Raises:
            LayerCollapseError: no such model, or nobody knows what it takes.
        """
        if self.kind == RUN or "data" in self.given:
            model, _, example = self.with_batches()
            return model, example
        shape = parsed_shape(self.given["input"]) if "input" in self.given else None
        if self.kind == MODEL:
            job = self._job()
            tokens = TOKENS if job.tokens is None else job.tokens
            wanted = sources.assumed(self.name, shape, tokens=tokens, width=job.width, args=job.model_args)
            model, example = job.begun(sources.build(self.name, wanted).model), wanted.example()
        elif self.kind == ONNX:
            sizes = open_sizes(self.name, shape)
            model, example = onnx().load(self.name, sizes), onnx().example_inputs(self.name, sizes)
        else:
            program = exported.read(self.name if self.kind == PROGRAM else f"{self.name}/{_PROGRAM}")
            model = exported.module_of(program) if self.kind == PROGRAM else load(self.name)
            example = exported.example_inputs(program, shape)
        images = [tuple(x.shape[1:]) for x in pytree.tree_leaves(example) if isinstance(x, Tensor) and x.ndim == 4]
        if shape is not None and shape not in images:
            takes = " or ".join("x".join(map(str, sizes)) for sizes in images) or "none, as it takes no images"
            raise LayerCollapseError(f"input: expected {takes} with {self.name}, got {self.given['input']}")
        return self._weighted(model), example

    def _job(self) -> Job:
        named: dict[str, Any] = {"model": self.name} if self.kind in (MODEL, PROGRAM) else {}
        job = Job(**self.given, **named)
        job.check()
        return job

    def _weighted(self, model: nn.Module) -> nn.Module:
        if self.weights is not None:
            checkpoint.load_weights(self.weights, model)
        return model.eval()


def onnx() -> ModuleType:
    """What reads ONNX files, with all that it needs."""
    return importlib.import_module("layercollapse.integrations.onnx")


def recorded(folder: str | Path, **changed: Any) -> tuple[Job, Record]:
    """The job of a run and its record; with other values of some keys.

    Raises:
        LayerCollapseError: no run of the command line there.
    """
    record = Record.load(folder)
    job = Job.of(record, **changed)
    job.check()
    return job, record


def chosen(record: Record) -> int:
    """The step of a run that was chosen.

    Raises:
        LayerCollapseError: none is finished.
    """
    if record.chosen is None:
        raise LayerCollapseError("run: expected a run with at least one finished step, got none")
    return record.chosen
