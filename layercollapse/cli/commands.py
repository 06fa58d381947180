"""The commands of the command line: arguments in, the library's functions, tables out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from layercollapse._util.files import free_folder, writable_folder, write_json, write_text
from layercollapse._version import __version__
from layercollapse.cli.experiment import Job
from layercollapse.cli.progress import RunDisplay
from layercollapse.compiler.driver.check import MODES
from layercollapse.errors import LayerCollapseError, require
from layercollapse.graph.capture import capture
from layercollapse.graph.prunable import by_reason, prunable
from layercollapse.ops import bench as timings
from layercollapse.pipeline import checkpoint
from layercollapse.pipeline.api import run as run_schedule
from layercollapse.pipeline.batches import Inputs, measure_entropy
from layercollapse.pipeline.finish import collapse_and_compare
from layercollapse.pipeline.metric import Metric
from layercollapse.pipeline.schedule import settled
from layercollapse.prune.budget import GLOBAL, RULES
from layercollapse.report import render as report
from layercollapse.report.record import FILE, Record
from layercollapse.strategies import STRATEGIES
from layercollapse.zoo.data import DATA_SETS
from layercollapse.zoo.models import MODELS

if TYPE_CHECKING:
    import click
    from rich.console import Console
else:
    click = require("click", "run")
    Console = require("rich.console", "run").Console

INTERRUPTED = 130  # 128 + SIGINT, what shells expect

MODE_HELP = (
    "repad: also merge what then differs at the border, and train once more. refit: also replace several layers "
    "between two rectifiers by fewer that are fitted on the data, and train once more."
)
PATTERNS_HELP = "Also count the joint patterns of signs: the linear pieces that every site uses on the data."
RUN_FOLDER = click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))


class BadInput(click.ClickException):
    """A `LayerCollapseError` on the command line: one line, and the status of a wrong argument."""

    exit_code = 2


class Commands(click.Group):
    """A group whose commands show a `LayerCollapseError` without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LayerCollapseError as error:
            raise BadInput(str(error)) from error


def job_options(command: Callable) -> Callable:
    """The options that say what is trained on what."""
    options = [
        click.option(
            "--data", type=click.Choice(DATA_SETS), help="Images.  [default: mnist5k, or idx with --data-dir]"
        ),
        click.option("--data-dir", type=click.Path(), help="Folder of IDX files, gzipped or not."),
        click.option("--model", type=click.Choice(list(MODELS)), default="resnet18", show_default=True),
        click.option("--width", type=int, default=16, show_default=True, help="Channels of the first stage."),
        click.option("--epochs", type=int, default=5, show_default=True, help="Of every training."),
        click.option("--batch-size", type=int, help="Of every training.  [default: 64 below 20,000 images, else 128]"),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ..."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def make_job(data: str | None, data_dir: str | None, **others: Any) -> Job:
    """A checked job; a folder without a name of data is a folder of IDX files."""
    job = Job(data=data or ("idx" if data_dir else "mnist5k"), data_dir=data_dir, **others)
    job.check()
    return job


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="layercollapse")
def layercollapse() -> None:
    """Remove whole layers from trained rectifier networks: prune until layers are linear, then merge them."""


@layercollapse.command()
@job_options
@click.option("--amount", type=float, default=0.5, show_default=True, help="Share of the weights left, per step.")
@click.option("--steps", type=int, default=5, show_default=True, help="Prunings at most.")
@click.option("--rule", type=click.Choice([*RULES, GLOBAL]), default="nepenthe", show_default=True, help="Budget rule.")
@click.option(
    "--strategy",
    default="prune",
    show_default=True,
    metavar="NAME[+NAME]",
    help=f"What a step does before it trains: {', '.join(STRATEGIES)}.",
)
@click.option(
    "--max-drop", type=float, default=0.5, show_default=True, help="Accuracy budget in points, on validation."
)
@click.option(
    "--max-layer-share",
    type=float,
    default=1.0,
    show_default=True,
    help="Share of its kept weights that a layer may lose in a step, at most.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Trained weights, safetensors or a state dict: the network is not trained before the first pruning.",
)
@click.option("--mode", type=click.Choice(MODES), default="exact", show_default=True, help=MODE_HELP)
@click.option("--patterns", is_flag=True, help=PATTERNS_HELP)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results.  [default: runs/DATA-MODEL]")
@click.option("--resume", is_flag=True, help="Go on with the run in --out after its last finished step.")
def run(
    *,
    amount: float,
    steps: int,
    rule: str,
    strategy: str,
    max_drop: float,
    max_layer_share: float,
    weights: Path | None,
    mode: str,
    patterns: bool,
    seed: int,
    out: Path | None,
    resume: bool,
    **job_arguments: Any,
) -> None:
    """Train, prune step by step, collapse: a shallower model and a report in --out.

    With no options: a ResNet-18 of width 16 on 5,000 MNIST digits. Ctrl-C ends cleanly with what is done.
    """
    console = Console()
    job = make_job(**job_arguments)
    folder = writable_folder(out or free_folder(f"{job.data}-{job.model}"))
    torch.manual_seed(seed)
    images, model = job.images, job.build()
    if weights is not None:
        checkpoint.load_weights(weights, model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    console.print(
        f"{job.model}, width {job.width} ({parameters:,} parameters) on {images.name} "
        f"({len(images.train):,} / {len(images.validation):,} / {len(images.test):,} images): "
        f"up to {steps} prunings, {job.epochs} epochs each",
        highlight=False,
        soft_wrap=True,
    )
    if images.classes:
        labels = f"{images.classes[0]} to {images.classes[-1]}"
        console.print(f"labels {labels} in the files are classes 0 to {images.num_classes - 1}", highlight=False)
    try:
        with RunDisplay(console, steps=steps, epochs=job.epochs, batches=job.batches_per_epoch) as display:
            result = run_schedule(
                model,
                train=lambda model: job.fit(model, progress=display.tick),
                evaluate=job.validate,
                data=job.training_batches,
                example_inputs=job.example,
                test=job.test,
                test_data=job.test_batches,
                amount=amount,
                steps=steps,
                max_drop=max_drop,
                unit="percent",
                rule=rule,
                strategy=strategy,
                max_layer_share=max_layer_share,
                train_first=weights is None,
                box=job.images.box,
                mode=mode,
                patterns=patterns,
                seed=seed,
                out=folder,
                resume=resume,
                settings=job.settings if weights is None else {**job.settings, "weights": str(weights)},
                progress=display.show,
            )
    except KeyboardInterrupt:
        done = f"what is finished is in {folder}" if (folder / FILE).exists() else "nothing was finished"
        console.print(f"Interrupted; {done}.")
        sys.exit(INTERRUPTED)
    _show(console, result.record, folder)
    if result.record.interrupted:
        sys.exit(INTERRUPTED)
    if result.record.failed:
        sys.exit(1)


@layercollapse.command()
@click.argument("folder", metavar="[RUN]", type=click.Path(path_type=Path), required=False)
@job_options
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write every neuron's counts here.")
@click.option("--patterns", is_flag=True, help=PATTERNS_HELP)
def analyze(folder: Path | None, seed: int, json_file: Path | None, patterns: bool, **job_arguments: Any) -> None:
    """Print the sign entropy of every rectifier site.

    Of the sparse model that RUN chose; without RUN, of a network that is trained first, as the options say. Sites that
    have no weights to prune are named with the reason.
    """
    console = Console()
    if folder is not None:
        job, record = _recorded(folder)
        model = job.load(folder, _chosen(record))
    else:
        job = make_job(**job_arguments)
        torch.manual_seed(seed)
        model = job.build()
        with RunDisplay(console, steps=0, epochs=job.epochs, batches=job.batches_per_epoch) as display:
            job.fit(model, progress=display.tick)
        model.eval()
    entropy = measure_entropy(model, Inputs(job.training_batches, "data"), patterns=patterns)
    click.echo(entropy.table())
    for line in by_reason(prunable(model, capture(model, job.example)).unfed):
        click.echo(f"nothing to prune before {line}")
    if json_file is not None:
        writable_folder(json_file.parent, "json")
        write_text(json_file, entropy.to_json())


@layercollapse.command()
@RUN_FOLDER
@click.option("--mode", type=click.Choice(MODES), default="exact", show_default=True, help=MODE_HELP)
@click.option("--tolerance", type=float, default=1e-4, show_default=True, help="Largest error of a merge.")
@click.option("--explain", is_flag=True, help="Say for every site why it collapsed or did not.")
def collapse(folder: Path, mode: str, tolerance: float, explain: bool) -> None:
    """Collapse the sparse model of RUN again, compare, and write model and report anew."""
    job, record = _recorded(folder)
    model = job.load(folder, _chosen(record))
    inputs = Inputs(job.training_batches, "data")
    result = collapse_and_compare(
        model,
        job.example,
        measure_entropy(model, inputs),
        data=inputs,
        test_data=Inputs(job.test_batches, "test_data"),
        test=job.test,
        record=record,
        folder=writable_folder(folder, "run"),
        settle=partial(settled, train=job.fit, evaluate=Metric(job.validate, "evaluate", "percent"), record=record),
        mode=mode,
        tolerance=tolerance,
        box=job.images.box,
    )
    report.write_html(record, folder)
    console = Console()
    if explain:
        click.echo(result.explain())
    _show(console, record, folder)


@layercollapse.command("report")
@RUN_FOLDER
def rebuild_report(folder: Path) -> None:
    """Write report.html and metrics.json of RUN anew from its record."""
    record = Record.load(folder)
    record.save(writable_folder(folder, "run"))
    Console().print(f"report: {report.write_html(record, folder)}", highlight=False, soft_wrap=True)


@layercollapse.command()
@click.option(
    "--entries", type=int, multiple=True, default=(1_000_000, 10_000_000), show_default=True, help="Sizes of a case."
)
@click.option("--repeats", type=int, default=15, show_default=True, help="Calls per measurement; the median counts.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the rows here.")
def bench(entries: tuple[int, ...], repeats: int, json_file: Path | None) -> None:
    """Time the two kernels on this machine, against what users have today and the speed of memory."""
    if json_file is not None:
        writable_folder(json_file.parent, "json")
    rows = timings.main(entries, repeats=repeats, progress=timings.Table(click.echo).add)
    if json_file is not None:
        write_json(json_file, [asdict(row) for row in rows])


def _recorded(folder: Path) -> tuple[Job, Record]:
    record = Record.load(folder)
    job = Job.of(record)
    job.check()
    return job, record


def _chosen(record: Record) -> int:
    if record.chosen is None:
        raise LayerCollapseError("run: expected a run with at least one finished step, got none")
    return record.chosen


def _show(console: Console, record: Record, folder: Path) -> None:
    if record.before and record.after:
        console.print(report.table(record))
    for note in record.notes:
        console.print(f"{note[:1].upper()}{note[1:]}.", highlight=False, soft_wrap=True)
    console.print(report.agreement_text(record), highlight=False, soft_wrap=True)
    files = {
        "report": report.FILE,
        "model": "model.safetensors (layercollapse.load), model.pt2 (torch alone)",
        "figures": "metrics.json",
    }
    for label, name in files.items():
        console.print(f"{label + ':':<8} {folder / name}", highlight=False, soft_wrap=True)
