"""The commands of the command line: arguments in, the library's functions, tables out."""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from layercollapse._util.files import free_folder, writable_folder, write_json
from layercollapse.cli import look  # noqa: F401  registers its commands
from layercollapse.cli.experiment import Job
from layercollapse.cli.group import DATA_DIR, about, keys_given, layercollapse
from layercollapse.cli.introduction import introduction, started
from layercollapse.cli.onnx import collapsed_file, file_options
from layercollapse.cli.options import GroupedCommand, options
from layercollapse.cli.recipe import FILE as RECIPE_FILE
from layercollapse.cli.recipe import Recipe, parse, read, written
from layercollapse.cli.subject import chosen, recorded
from layercollapse.compiler.driver.check import MODES
from layercollapse.errors import LayerCollapseError, require
from layercollapse.integrations.logs import LOGS
from layercollapse.ops import bench as timings
from layercollapse.pipeline import checkpoint
from layercollapse.pipeline.api import run as run_schedule
from layercollapse.pipeline.batches import Inputs, measure_entropy
from layercollapse.pipeline.finish import collapse_and_compare, settled
from layercollapse.pipeline.metric import Metric
from layercollapse.pipeline.processes import from_first, joined
from layercollapse.pipeline.progress import ProgressBar
from layercollapse.report import compare
from layercollapse.report import render as report
from layercollapse.report.record import FILE, Record

if TYPE_CHECKING:
    import click
    from rich.console import Console
else:
    click = require("click", "run")
    Console = require("rich.console", "run").Console

INTERRUPTED = 130  # 128 + SIGINT, what shells expect


@layercollapse.command(cls=GroupedCommand, keys=Recipe)
@click.argument("arguments", metavar="[RECIPE] [KEY=VALUE]...", nargs=-1)
@options(Recipe)
@DATA_DIR
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results.  [default: runs/DATA-MODEL]")
@click.option("--resume", is_flag=True, help="Go on with the run in --out where it was, or begin it.")
@click.option("--print-recipe", is_flag=True, help="Print the recipe with all keys and what they mean, and end.")
def run(
    *,
    arguments: tuple[str, ...],
    data_dir: str | None,
    out: Path | None,
    resume: bool,
    print_recipe: bool,
    **given: Any,
) -> None:
    """Train, prune step by step, collapse: a shallower model and a report in --out.

    With no options: a ResNet-18 of width 16 on 5,000 MNIST digits. Ctrl-C ends cleanly with what is done.

    RECIPE is a YAML file, such as the recipe.yaml in the folder of a run, which makes that run again. Every option
    is a key of it: --max-drop 1 is max_drop=1. What is given on the command line counts before what the file says.
    """
    values = parse(arguments)
    if resume and not values and out is not None and (out / RECIPE_FILE).is_file():
        values = read(str(out / RECIPE_FILE))
    recipe = Recipe(**{**values, **keys_given(given, data_dir)})
    if print_recipe:
        click.echo(written(recipe), nl=False)
        return
    if recipe.weights is not None and recipe.init is not None:
        raise LayerCollapseError(f"init: expected either weights or init, got {recipe.weights!r} and {recipe.init!r}")
    with joined(recipe.device):
        status = _run(recipe, out, resume=resume)
    sys.exit(status)


def _run(recipe: Recipe, out: Path | None, *, resume: bool) -> int:
    """The whole job, in one process or as one of several; the status with which to end."""
    job = Job.taken(recipe.model_dump())
    job.check()
    console = Console(quiet=not job.ranks.first)
    logs = [LOGS[name]() for name in recipe.log] if job.ranks.first else []
    folder = Path(from_first(job.ranks, lambda: str(writable_folder(out or free_folder(job.title)))))
    torch.manual_seed(recipe.seed)
    model = job.build()
    if recipe.weights is not None:
        checkpoint.load_weights(recipe.weights, model)
    for line in introduction(job, model, recipe):
        console.print(line, highlight=False, soft_wrap=True)
    train_first = recipe.weights is None if recipe.train_first is None else recipe.train_first
    try:
        with ProgressBar(console, steps=recipe.steps, epochs=job.epochs, batches=job.batches_per_epoch) as display:
            result = run_schedule(
                model,
                train=partial(job.fit, progress=display.tick),
                evaluate=job.evaluate,
                data=job.training_batches,
                example_inputs=job.example,
                test=job.test,
                test_data=job.test_batches,
                amount=recipe.amount,
                steps=recipe.steps,
                max_drop=recipe.max_drop,
                unit="percent",
                rule=recipe.rule,
                strategy=recipe.strategy,
                max_layer_share=recipe.max_layer_share,
                train_first=train_first,
                box=job.dataset.box,
                mode=recipe.mode,
                patterns=recipe.patterns,
                seed=recipe.seed,
                out=folder,
                resume=resume,
                settings={**job.settings, "weights": recipe.weights},
                progress=[*logs, started(recipe, job, folder, display.show)],
            )
    except KeyboardInterrupt:
        done = f"what is finished is in {folder}" if (folder / FILE).exists() else "nothing was finished"
        console.print(f"Interrupted; {done}.")
        return INTERRUPTED
    _show(console, result.record, folder)
    if result.record.interrupted:
        return INTERRUPTED
    return 1 if result.record.failed else 0


@layercollapse.command()
@click.argument("folder", metavar="RUN|FILE.onnx", type=click.Path(path_type=Path))
@click.option("--mode", type=click.Choice(MODES), default="exact", show_default=True, help=about("mode"))
@click.option("--tolerance", type=float, default=1e-4, show_default=True, help="Largest error of a merge.")
@click.option("--explain", is_flag=True, help="Say for every site why it collapsed or did not.")
@file_options
def collapse(folder: Path, *, mode: str, tolerance: float, explain: bool, **file: Path | None) -> None:
    """Collapse the sparse model of RUN again, compare, and write model and report anew; or that of an ONNX file."""
    if collapsed_file(folder, **file, mode=mode, tolerance=tolerance):
        return
    job, record = recorded(folder)
    model = job.load(folder, chosen(record))
    inputs = Inputs(job.training_batches, "data")
    _, result = collapse_and_compare(
        model,
        job.example,
        measure_entropy(model, inputs),
        data=inputs,
        test_data=Inputs(job.test_batches, "test_data"),
        test=job.test,
        record=record,
        folder=writable_folder(folder, "run"),
        settle=partial(settled, train=job.fit, evaluate=Metric(job.evaluate, "evaluate", "percent"), record=record),
        mode=mode,
        tolerance=tolerance,
        box=job.dataset.box,
    )
    report.write_html(record, folder)
    if explain and result is not None:
        click.echo(result.explain())
    _show(Console(), record, folder)


@layercollapse.command("report")
@click.argument("folders", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
def rebuild_report(folders: tuple[Path, ...]) -> None:
    """Write report.html and metrics.json of RUN anew from its record; compare several runs in a table."""
    if len(folders) > 1:
        Console().print(compare.table(folders))
        return
    (folder,) = folders
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
