"""What a run begins with: what is trained on what, said on the console and kept in its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from layercollapse._util.files import write_text
from layercollapse.cli.experiment import Job
from layercollapse.cli.recipe import Recipe, save
from layercollapse.pipeline.events import Event
from layercollapse.zoo.data import tokenizer
from layercollapse.zoo.models import MODELS

MOST_NAMES = 12  # of classes, on the console


def introduction(job: Job, model: nn.Module, recipe: Recipe) -> list[str]:
    """What is trained on what, in lines for the console."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    known, parts = job.dataset, (job.dataset.train, job.dataset.validation, job.dataset.test)
    width = f", width {job.settings['width']}" if job.settings["width"] is not None else ""
    lines = [
        f"{job.model}{width} ({parameters:,} parameters) on {known.name} "
        f"({' / '.join(f'{len(part):,}' for part in parts)} {known.kind}): "
        f"up to {recipe.steps} prunings, {job.epochs} epochs each"
    ]
    if known.classes and isinstance(known.classes[0], int):
        labels = f"{known.classes[0]} to {known.classes[-1]}"
        lines.append(f"labels {labels} in the files are classes 0 to {known.num_classes - 1}")
    elif known.classes:
        more = f" and {known.num_classes - MOST_NAMES} more" if known.num_classes > MOST_NAMES else ""
        lines.append(f"classes: {', '.join(map(str, known.classes[:MOST_NAMES]))}{more}")
    lines += known.notes
    if job.model not in MODELS or job.optimizer or job.lr or job.schedule or job.milestones:
        trainer = job.trainer
        lines.append(
            f"trained by {trainer['optimizer']}, learning rate {trainer['lr']:g}, {trainer['schedule']}, batches of "
            f"{trainer['batch_size']}"
        )
    if job.init is not None:
        lines.append(f"weights of {job.init}" + (f", but random ones: {', '.join(job.fresh)}" if job.fresh else ""))
    return lines


def started(recipe: Recipe, job: Job, folder: Path, show: Callable[[Event], object]) -> Callable[[Event], object]:
    """`show`, and the recipe in the run's folder as soon as a run begins there, which another run would refuse to."""

    def progress(event: Event) -> None:
        if event.stage in ("train", "collapse"):
            save(recipe, folder)
            if job.dataset.text is not None:
                write_text(folder / tokenizer.FILE, job.dataset.text.tokenizer.to_str(pretty=True))
        show(event)

    return progress
