"""The command line's job: a built-in network, built-in data, and the functions that `run` asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layercollapse.errors import LayerCollapseError
from layercollapse.pipeline import checkpoint
from layercollapse.prune.linearize import linearize
from layercollapse.report.record import Record
from layercollapse.zoo import data, models
from layercollapse.zoo.data import Batches, DataSet
from layercollapse.zoo.train import BATCH_SIZE, EVALUATION_BATCH, accuracy, fit

FEW_IMAGES = 20_000


@dataclass(frozen=True)
class Job:
    """What is trained on what; everything else of a run is the schedule's business.

    Attributes:
        data: one of `layercollapse.data.DATA_SETS`.
        data_dir: folder of IDX files, for the data sets that need one.
        model: one of `layercollapse.models.MODELS`.
        width: channels of the first stage.
        epochs: of every training of the schedule.
        batch_size: of every training; None takes 64 for fewer than 20,000 training images, 128 from there on.
        device: "cpu", "cuda", "cuda:1", ...
    """

    data: str = "mnist5k"
    data_dir: str | None = None
    model: str = "resnet18"
    width: int = 16
    epochs: int = 5
    batch_size: int | None = None
    device: str = "cpu"

    @classmethod
    def of(cls, record: Record) -> Job:
        """The job of a recorded run.

        Raises:
            LayerCollapseError: the run was not made by the command line.
        """
        try:
            return cls(**{field.name: record.settings[field.name] for field in fields(cls)})
        except KeyError as error:
            raise LayerCollapseError(
                f"run: expected a run of the command line, whose model and data can be rebuilt, got one without {error}"
            ) from error

    @property
    def settings(self) -> dict[str, Any]:
        """For the record."""
        return asdict(self)

    def check(self) -> None:
        """Refuse what would only fail later.

        Raises:
            LayerCollapseError: epochs below 1, or a device that is not there.
        """
        for name, value in (("epochs", self.epochs), ("batch_size", 1 if self.batch_size is None else self.batch_size)):
            if value < 1:
                raise LayerCollapseError(f"{name}: expected at least 1, got {value}")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
            reason = str(error).splitlines()[0]
            raise LayerCollapseError(f"device: expected one that works here, got {self.device!r}: {reason}") from error

    @cached_property
    def images(self) -> DataSet:
        """The data, on the device."""
        return data.load(self.data, self.data_dir).to(self.device)

    def build(self) -> nn.Module:
        """The network on the device, with fresh weights."""
        model = models.build(
            self.model,
            num_classes=self.images.num_classes,
            in_channels=self.images.in_channels,
            image_size=self.images.image_size,
            width=self.width,
        )
        return model.to(self.device)

    def load(self, folder: str | Path, step: int) -> nn.Module:
        """The network on the device with the weights and linear sites of a step of a run, in evaluation mode."""
        model = self.build()
        checkpoint.load(Path(folder), step, model)
        if lines := checkpoint.lines(Path(folder), step):
            linearize(model, lines, self.example)
        return model.eval()

    @property
    def training_batch(self) -> int:
        """Images per optimizer step. Few images need the more steps that small batches make.

        With 3 % of the weights left, 5 epochs on MNIST-5k reached 95.8, 97.6 and 96.2 % on validation (seeds 1 to 3)
        in batches of 128, and 98.2, 97.0 and 98.2 % in batches of 64.
        """
        return self.batch_size or (BATCH_SIZE // 2 if len(self.images.train) < FEW_IMAGES else BATCH_SIZE)

    def fit(self, model: nn.Module, progress: Callable[[], object] | None = None) -> None:
        """Train with the recipe of `layercollapse.train`.

        With channels last, which takes a fifth to a third less time on a CPU (ResNet-18 on MNIST-5k, one thread: 2.4
        instead of 3.0 to 3.7 s an epoch); the weights are contiguous again afterwards.
        """
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a gap in the stubs
        try:
            fit(model, self.images.train, epochs=self.epochs, batch_size=self.training_batch, progress=progress)
        finally:
            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def validate(self, model: nn.Module) -> float:
        """Top-1 on the validation split in percent."""
        return accuracy(model, self.images.validation)

    def test(self, model: nn.Module) -> float:
        """Top-1 on the test split in percent."""
        return accuracy(model, self.images.test)

    @property
    def batches_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return len(self.images.train.shuffled(self.training_batch))

    @property
    def training_batches(self) -> Batches:
        """The training split in order, for the entropy."""
        return self.images.train.batches(EVALUATION_BATCH)

    @property
    def test_batches(self) -> Batches:
        """The test split in order."""
        return self.images.test.batches(EVALUATION_BATCH)

    @property
    def example(self) -> tuple[Tensor, ...]:
        """Inputs to capture the model with."""
        return (self.images.train.images[:2],)
