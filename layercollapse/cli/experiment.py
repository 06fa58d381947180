"""The command line's job: a network, data, and the functions that `run` asks for."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from layercollapse._util.modes import evaluating
from layercollapse._util.ranks import Ranks
from layercollapse.cli.recipe import DataKeys, TrainingKeys
from layercollapse.errors import LayerCollapseError
from layercollapse.graph.export import describe, reason
from layercollapse.pipeline import checkpoint
from layercollapse.pipeline.norms import has_norms
from layercollapse.pipeline.training import TrainingCheckpoint
from layercollapse.prune.linearize import linearize
from layercollapse.report.record import Record
from layercollapse.zoo import data, models
from layercollapse.zoo.data.split import DataSet, Feed, Part
from layercollapse.zoo.models import sources
from layercollapse.zoo.models.wanted import Built, Wanted
from layercollapse.zoo.optimizers import OPTIMIZERS, SCHEDULES
from layercollapse.zoo.train import BATCH_SIZE, EVALUATION_BATCH, accuracy, fit, logits

FEW_SAMPLES = 20_000
EVALUATION_PIXELS = EVALUATION_BATCH * 3 * 32 * 32  # of a batch of images; larger ones come in smaller batches
FINE_TUNING = 0.1  # of the learning rate, for weights that are trained ones
DEFAULT_DATA = str(TrainingKeys.model_fields["data"].default)


class Job(TrainingKeys):
    """What is trained on what; everything else of a run is the schedule's business."""

    _fresh: list[str] = []  # noqa: RUF012 (pydantic copies it) what `init` has no values for
    _known: tuple[bool, bool] | None = None  # see `_facts`

    @classmethod
    def of(cls, record: Record, **changed: Any) -> Job:
        """The job of a recorded run, with other values of some keys.

        Raises:
            LayerCollapseError: the run was not made by the command line.
        """
        known = record.settings
        if missing := [name for name in ("data", "model") if name not in known]:
            raise LayerCollapseError(
                "run: expected a run of the command line, whose model and data can be rebuilt, got one without "
                f"{missing[0]!r}"
            )
        return cls.taken({**known, "data": with_folder(known["data"], known.get("data_dir")), **changed})

    @classmethod
    def taken(cls, values: Mapping[str, Any]) -> Job:
        """The job in the values of a recipe, which has other keys, too."""
        return cls(**{name: values[name] for name in cls.model_fields if name in values})

    @property
    def settings(self) -> dict[str, Any]:
        """For the record."""
        return {**self.model_dump(mode="json"), "width": sources.width_of(self.model, self.width)}

    def check(self) -> None:
        """Refuse a device that would only fail later.

        Raises:
            LayerCollapseError: it is not there.
        """
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
            reason = str(error).splitlines()[0]
            raise LayerCollapseError(f"device: expected one that works here, got {self.device!r}: {reason}") from error

    @property
    def fresh(self) -> list[str]:
        """What of the network that was built last the weights to begin with had no values for."""
        return list(self._fresh)

    @property
    def title(self) -> str:
        """What a folder for the run is called."""
        kind, _, path = self.data.partition(":")
        names = (Path(path).stem if path and "/" in path else kind, self.model.rpartition("/")[2])
        return "-".join(re.sub(r"[^\w.]+", "-", name).strip("-.") for name in names)

    @cached_property
    def dataset(self) -> DataSet:
        """The data, on the device."""
        options = {name: getattr(self, name) for name in DataKeys.model_fields if name != "data"}
        if self.data.partition(":")[0] not in data.SOURCES:
            options["batch_size"] = self.batch_size  # for a function of the user's
        elif self.tokenizer is None and data.takes(self.data, "tokenizer"):
            options["tokenizer"] = sources.tokenizer(self.model)
        return data.load(self.data, **options).to(self.device)

    def build(self, classifies: bool = True) -> nn.Module:
        """The network on the device, with fresh weights or those to begin with.

        Args:
            classifies: whether one that is not built in is tried: it must give logits for the classes of the data.

        Raises:
            LayerCollapseError: there is no such network, or it does not take the data or give their classes.
        """
        model = self.begun(self._built().model).to(self.device)
        if classifies and not sources.built_in(self.model):
            self._try(model)
        return model

    def begun(self, model: nn.Module) -> nn.Module:
        """A network with the weights to begin with, if there are any."""
        if self.init is not None:
            self._fresh = checkpoint.load_fitting(self.init, model)
        return model

    def _built(self) -> Built:
        built = sources.build(self.model, Wanted.of(self.dataset, self.width, self.model_args))
        self._known = has_norms(built.model), built.pretrained or self.init is not None
        return built

    def _try(self, model: nn.Module) -> None:
        """Look at the logits of two samples."""
        found = self.tried(model, self.model, self.example, logits).shape[1]
        if found < self.dataset.num_classes:
            raise LayerCollapseError(
                f"model: expected logits for the {self.dataset.num_classes} classes of {self.data}, got {found} of "
                f"{self.model}"
            )

    def tried(
        self, model: nn.Module, name: str, example: Any, call: Callable[[nn.Module, Any], Any] | None = None
    ) -> Any:
        """What a model makes of some samples, a tuple with one tensor or a dict of its arguments.

        Raises:
            LayerCollapseError: it stops; the message has its name.
        """
        inputs = example if isinstance(example, dict) else example[0]
        try:
            with evaluating(model), torch.no_grad():
                if call is not None:
                    return call(model, inputs)
                return model(**inputs) if isinstance(inputs, dict) else model(inputs)
        except LayerCollapseError:
            raise
        except Exception as error:
            raise LayerCollapseError(
                f"model: expected one that takes {describe(example)} of {self.data}, got {name}, which stopped with "
                f"{reason(error)}"
            ) from error

    @property
    def _facts(self) -> tuple[bool, bool]:
        """Whether the network has batch norms, and whether its weights are trained ones before the first training."""
        if self._known is None:  # nothing was built yet
            with torch.random.fork_rng(devices=[]):
                self._built()
        assert self._known is not None
        return self._known

    @property
    def trainer(self) -> dict[str, Any]:
        """What trains: the arguments of `fit` that follow from the keys and the network."""
        name = self.optimizer
        if name is None:
            name = "sgd" if self.model in models.MODELS or self._facts[0] else "adamw"
        lr = self.lr
        if lr is None:
            pretrained = self.init is not None or (not sources.built_in(self.model) and self._facts[1])
            lr = OPTIMIZERS[name].lr * (FINE_TUNING if pretrained else 1)
        return {
            "epochs": self.epochs,
            "batch_size": self.training_batch,
            "optimizer": name,
            "lr": lr,
            "schedule": self.schedule or ("milestones" if self.milestones else SCHEDULES[0]),
            "milestones": self.milestones,
            "flip": self.flip,
            **({} if self.momentum is None else {"momentum": self.momentum}),
            **({} if self.weight_decay is None else {"weight_decay": self.weight_decay}),
        }

    def load(self, folder: str | Path, step: int) -> nn.Module:
        """The network on the device with the weights and linear sites of a step of a run, in evaluation mode."""
        model = self.build()
        checkpoint.load(Path(folder), step, model)
        if lines := checkpoint.lines(Path(folder), step):
            linearize(model, lines, self.example)
        return model.eval()

    @property
    def training_batch(self) -> int:
        """Samples per optimizer step. Few samples need the more steps that small batches make.

        With 3 % of the weights left, 5 epochs on MNIST-5k reached 95.8, 97.6 and 96.2 % on validation (seeds 1 to 3)
        in batches of 128, and 98.2, 97.0 and 98.2 % in batches of 64.
        """
        return self.batch_size or (BATCH_SIZE // 2 if len(self.dataset.train) < FEW_SAMPLES else BATCH_SIZE)

    @property
    def evaluation_batch(self) -> int:
        """Samples per forward pass without gradients."""
        pixels = math.prod(self.dataset.shape or (1,))
        size = min(EVALUATION_BATCH, max(EVALUATION_PIXELS // pixels, self.training_batch))
        return min(size, -(-len(self.dataset.train) // self.ranks.size))  # so that there is a batch for each process

    def fit(
        self,
        model: nn.Module,
        progress: Callable[[], object] | None = None,
        checkpoint: TrainingCheckpoint | None = None,
    ) -> None:
        """Train with `layercollapse.train`, as the keys say, from the epoch on where the checkpoint is.

        Images with channels last, which takes a fifth to a third less time on a CPU (ResNet-18 on MNIST-5k, one thread:
        2.4 instead of 3.0 to 3.7 s an epoch); the weights are contiguous again afterwards.
        """
        images, ranks = self.dataset.shape is not None, self.ranks
        if self.training_batch < 2 * ranks.size and not ranks.alone:
            raise LayerCollapseError(
                f"batch_size: expected at least 2 samples for each of {ranks.size} processes, got {self.training_batch}"
            )
        if images:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a gap in the stubs
        try:
            fit(
                model if ranks.alone else self._parallel(model),
                self._own(self.dataset.train),
                progress=progress,
                epochs_left=None if checkpoint is None else checkpoint.epochs,
                **self.trainer,
            )
        finally:
            if images:
                model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def _parallel(self, model: nn.Module) -> nn.Module:
        """The network in DistributedDataParallel."""
        inputs = self.example if isinstance(self.example, dict) else self.example[0]
        with evaluating(model):
            logits(model, inputs).sum().backward()
        unused = any(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
        model.zero_grad(set_to_none=True)
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)

    @cached_property
    def ranks(self) -> Ranks:
        """The processes that do the job together."""
        return Ranks.default(self.device)

    def _own(self, part: Part) -> Part:
        """The share of a part that is for this process."""
        return part if self.ranks.alone else part.share(self.ranks.rank, self.ranks.size)

    def evaluate(self, model: nn.Module) -> float:
        """Top-1 on the validation split in percent."""
        return accuracy(model, self._own(self.dataset.validation), self.evaluation_batch, self.ranks)

    def test(self, model: nn.Module) -> float:
        """Top-1 on the test split in percent."""
        return accuracy(model, self._own(self.dataset.test), self.evaluation_batch, self.ranks)

    @property
    def batches_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return len(self.dataset.train.shuffled(self.training_batch))

    @property
    def training_batches(self) -> Feed:
        """The training split in order, for the entropy."""
        return self._own(self.dataset.train).batches(self.evaluation_batch)

    @property
    def test_batches(self) -> Feed:
        """The test split in order."""
        return self.dataset.test.batches(self.evaluation_batch)

    @cached_property
    def example(self) -> tuple[Tensor, ...] | dict[str, Tensor]:
        """Inputs to capture the model with: the first two samples."""
        inputs, _ = next(iter(self.dataset.train.batches(2)))
        cut = pytree.tree_map(lambda x: x[:2], inputs)
        return cut if isinstance(cut, dict) else (cut,)


def with_folder(name: str | None, folder: str | None) -> str:
    """The data that a name and a folder of files mean, as one text; a folder alone is one of IDX files."""
    return f"{name or 'idx'}:{folder}" if folder else name or DEFAULT_DATA
