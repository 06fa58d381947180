"""The commands that look at a model: `analyze` measures its entropies, `inspect` says what it could lose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from layercollapse._util.files import writable_folder, write_text
from layercollapse.cli.experiment import Job
from layercollapse.cli.group import DATA_DIR, about, keys_given, layercollapse
from layercollapse.cli.options import GroupedCommand, options
from layercollapse.cli.recipe import ModelKeys, TrainingKeys
from layercollapse.cli.subject import Subject
from layercollapse.errors import LayerCollapseError, require
from layercollapse.graph.capture import capture
from layercollapse.graph.prunable import by_reason, prunable
from layercollapse.pipeline.batches import Inputs, measure_entropy
from layercollapse.pipeline.progress import ProgressBar
from layercollapse.report.inspection import Inspection, inspect

if TYPE_CHECKING:
    import click
    from rich.console import Console
else:
    click = require("click", "run")
    Console = require("rich.console", "run").Console

DRAWINGS = {".svg": Inspection.to_svg, ".mmd": Inspection.to_mermaid}


@layercollapse.command(cls=GroupedCommand, keys=TrainingKeys)
@click.argument("subject", metavar="[RUN|FOLDER|FILE|MODEL]", required=False)
@options(TrainingKeys)
@DATA_DIR
@click.option("--weights", metavar="FILE", help="Weights of MODEL, safetensors or a state dict.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write every neuron's counts here.")
@click.option("--patterns", is_flag=True, help=about("patterns"))
def analyze(
    subject: str | None,
    *,
    data_dir: str | None,
    weights: str | None,
    seed: int,
    json_file: Path | None,
    patterns: bool,
    **given: Any,
) -> None:
    """Print the sign entropy of every rectifier site.

    Of the sparse model that RUN chose, on its data; or, on --data, of what result.save wrote into FOLDER, of a
    FILE.onnx or FILE.pt2, or of MODEL as for `run`, with its own, --weights or fresh ones: nothing is trained. Without
    any of these, of a network that is trained first, as the options say. Sites that have no weights to prune are named
    with the reason.
    """
    console = Console()
    torch.manual_seed(seed)
    keys = keys_given(given, data_dir)
    if subject is not None:
        model, batches, example = Subject.of(subject, keys, weights).with_batches()
    elif weights is not None:
        raise LayerCollapseError(f"weights: expected them with a MODEL to analyze, got {weights!r} alone")
    else:
        job = Job(**keys)
        job.check()
        model = job.build()
        with ProgressBar(console, steps=0, epochs=job.epochs, batches=job.batches_per_epoch) as display:
            job.fit(model, progress=display.tick)
        model.eval()
        batches, example = job.training_batches, job.example
    entropy = measure_entropy(model, Inputs(batches, "data", model), patterns=patterns)
    click.echo(entropy.table())
    try:
        for line in by_reason(prunable(model, capture(model, example)).unfed):
            click.echo(f"nothing to prune before {line}")
    except LayerCollapseError as error:  # the entropies are right all the same
        click.echo(f"it cannot be pruned or collapsed as it is: {error}")
    if json_file is not None:
        writable_folder(json_file.parent, "json")
        write_text(json_file, entropy.to_json())


@layercollapse.command("inspect", cls=GroupedCommand, keys=ModelKeys)
@click.argument("subject", metavar="[MODEL|RUN|FOLDER|FILE]", required=False)
@options(ModelKeys)
@DATA_DIR
@click.option("--weights", metavar="FILE", help="Weights of MODEL, safetensors or a state dict.")
@click.option("--out", type=click.Path(path_type=Path), help="Draw it: FILE.svg, or FILE.mmd for Mermaid.")
def inspect_model(
    subject: str | None, *, data_dir: str | None, weights: str | None, out: Path | None, **given: Any
) -> None:
    """Say what a network could lose, before anything is trained.

    Every rectifier site, the layers that feed it, the linear regions between, what keeps layers apart, and how many
    multiply-accumulates could go with each. No data are needed where the shape of the input is known: of built-in
    networks, torchvision's, timm's, hf:, files and saved folders. For others --input or --data says it.
    """
    if out is not None:
        if out.suffix not in DRAWINGS:
            raise LayerCollapseError(f"out: expected a file that ends in {' or '.join(DRAWINGS)}, got {str(out)!r}")
        writable_folder(out.parent)
    torch.manual_seed(0)
    seen = inspect(*Subject.of(subject, keys_given(given, data_dir), weights).with_example())
    click.echo(seen.table())
    if out is not None:
        write_text(out, DRAWINGS[out.suffix](seen))
        click.echo(f"\ndrawing: {out}")
