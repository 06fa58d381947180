"""What each strategy is worth: accuracy against sites removed and against time, and against the same layers untrained.

    python benchmarks/methods.py --data mnist5k --seeds 0 1 2   # a quarter of an hour a seed on two cores
    python benchmarks/methods.py --table                        # no work: the table of what is there

All strategies get the same network, data, epochs, validation split and accuracy budget; the test split is used once,
for what each gives in the end. Every run has a folder in --out, and one that is done is not made again. Two things are
more than what papers show: `random` removes any site, and for every emitted network the column *from random weights* is
the accuracy of the same layers, with batch norms while they train, after as many epochs in one training.

Times are of one thread, of all emitted networks and the dense one (batch norms folded) in turns in one process. Writes
docs/results/methods.json, methods.md and methods.png; with --dry, only prints the table.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import layercollapse as lc
from layercollapse._util.files import read_json, write_json, write_text
from layercollapse.cli.experiment import Job
from layercollapse.pipeline import checkpoint
from layercollapse.pipeline.latency import BATCH_SIZES, environment, latency, repeat_to
from layercollapse.pipeline.norms import with_norms, without_norms

RESULTS = Path(__file__).parent.parent / "docs" / "results"
FILE = "methods.json"
# Strategy and mode.
METHODS = [
    ("prune", "exact"),
    ("random", "exact"),
    ("easier", "exact"),
    ("tlc", "exact"),
    ("collapse", "exact"),
    ("collapse+prune", "exact"),
    ("collapse", "refit"),
]
HEADING = """# Strategies compared

Made by `python benchmarks/methods.py`, whose docstring has the protocol.

"""


def label(strategy: str, mode: str) -> str:
    return strategy if mode == "exact" else f"{strategy}, {mode}"


def scratch(model: nn.Module, job: Job, epochs: int, seed: int) -> float:
    """Test accuracy of a network's layers from random weights, after so many epochs in one training."""
    torch.manual_seed(seed)
    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    trained = with_norms(model, job.training_batches)  # type: ignore[arg-type]
    Job(**{**job.settings, "epochs": epochs}).fit(trained.train())
    return job.test(without_norms(trained))


def row(job: Job, method: tuple[str, str], folder: Path, *, seed: int, steps: int, max_drop: float) -> dict[str, Any]:
    """Run a strategy, and train what it emits from random weights."""
    strategy, mode = method
    torch.manual_seed(seed)
    result = lc.run(
        job.build(),
        train=job.fit,
        evaluate=job.evaluate,
        test=job.test,
        data=job.training_batches,
        test_data=job.test_batches,
        example_inputs=job.example,
        strategy=strategy,
        mode=mode,
        steps=steps,
        max_drop=max_drop,
        unit="percent",
        seed=seed,
        out=folder,
        settings=job.settings,
    )
    metrics, record = result.metrics, result.record
    trainings = len(record.steps) + bool(record.refitted)
    model = lc.load(folder)
    return {
        "method": label(strategy, mode),
        "seed": seed,
        "dense": metrics["before"]["top1"],
        "top1": metrics["after"]["top1"],
        "gone": len(result.collapse.collapsed),
        "sites": len(result.collapse.sites),
        "depth": metrics["after"]["depth"],
        "parameters": metrics["after"]["parameters"],
        "epochs": trainings * job.epochs,
        "scratch": scratch(model, job, trainings * job.epochs, seed),
        "steps": [[step.sites_collapsed, step.top1_validation] for step in record.steps],
    }


def timed(job: Job, folders: Sequence[Path]) -> list[dict[str, float]]:
    """How many times faster each emitted network is than the dense one, by batch size, in turns on one thread."""
    torch.set_num_threads(1)
    dense = job.build()
    checkpoint.load(folders[0], 0, dense)
    folded = lc.collapse(dense.eval(), job.example, cost="macs").model
    models = [folded.eval(), *(lc.load(folder).eval() for folder in folders)]
    found: list[dict[str, float]] = [{} for _ in folders]
    for size in BATCH_SIZES:
        base, *others = latency(models, repeat_to(job.example, size), seconds=2.0 * len(models))
        for place, ms in zip(found, others, strict=True):
            place[str(size)] = base / ms
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line for each method, means over the seeds and half the range."""

    def spread(values: Sequence[float], digits: int = 1) -> str:
        half = (max(values) - min(values)) / 2
        return f"{statistics.mean(values):.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")

    head = (
        "sites gone, depth, parameters, top-1 dense %, top-1 %, from random weights %, faster batch 1, faster batch 64"
    )
    lines = [f"| method | {head.replace(', ', ' | ')} |", "|---|" + "---:|" * 8]
    for method in dict.fromkeys(r["method"] for r in rows):
        own = [r for r in rows if r["method"] == method]
        cells = [
            f"{spread([r['gone'] for r in own])} of {own[0]['sites']}",
            spread([r["depth"] for r in own]),
            f"{statistics.mean(r['parameters'] for r in own):,.0f}",
            *(spread([r[key] for r in own], 2) for key in ("dense", "top1", "scratch")),
            *(f"{spread([r['faster'][str(size)] for r in own])}x" for size in BATCH_SIZES),
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Validation accuracy against sites gone at every step, and test accuracy against speed at the end."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5))
    for index, method in enumerate(dict.fromkeys(r["method"] for r in rows)):
        color = f"C{index}"
        own = [r for r in rows if r["method"] == method]
        for number, r in enumerate(own):
            left.plot(*zip(*sorted(r["steps"]), strict=True), "o-", color=color, label=None if number else method, ms=4)
        right.plot([r["faster"]["64"] for r in own], [r["top1"] for r in own], "o", color=color, label=method)
        right.plot([r["faster"]["64"] for r in own], [r["scratch"] for r in own], "x", color=color)
    left.set(xlabel="linear sites", ylabel="top-1 on validation, %", title="Every step of a run")
    right.set(
        xlabel="times faster, batch 64, one thread",
        ylabel="top-1 on test, %",
        title="What each gives in the end (x: its layers from random weights)",
    )
    left.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--data", default="mnist5k")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=4, help="of every training")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--max-drop", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=[label(*method) for method in METHODS])
    parser.add_argument("--table", action="store_true", help="only what is there")
    parser.add_argument("--dry", action="store_true", help="write nothing but the runs")
    arguments = parser.parse_args()
    job = Job(data=arguments.data, model=arguments.model, width=arguments.width, epochs=arguments.epochs)
    rows = []
    for seed in arguments.seeds:
        done: list[tuple[dict[str, Any], Path]] = []
        for strategy, mode in METHODS:
            folder = arguments.out / f"{job.data}-{job.model}-{seed}-{strategy}-{mode}"
            if label(strategy, mode) not in arguments.methods or (arguments.table and not (folder / FILE).exists()):
                continue
            if not (folder / FILE).exists():
                made = row(job, (strategy, mode), folder, seed=seed, steps=arguments.steps, max_drop=arguments.max_drop)
                write_json(folder / FILE, made)
                print(
                    f"seed {seed}, {made['method']}: {made['gone']} of {made['sites']}, {made['top1']:.2f} %",
                    flush=True,
                )
            done.append((read_json(folder / FILE, "out"), folder))
        if done and any("faster" not in made for made, _ in done) and not arguments.table:
            for (made, folder), faster in zip(done, timed(job, [folder for _, folder in done]), strict=True):
                made["faster"] = faster
                write_json(folder / FILE, made)
        rows += [made for made, _ in done if "faster" in made]
    if not rows:
        raise SystemExit(f"{arguments.out}: no run is done")
    about = f"{job.model}, width {job.width}, on {job.data}: {job.epochs} epochs a training, at most {arguments.steps} "
    about += f"steps, {arguments.max_drop:g} points on validation, seeds {', '.join(map(str, arguments.seeds))}."
    print(f"{about}\n\n{table(rows)}")
    if not arguments.dry:
        about += f" {environment(torch.device('cpu'))['device']}, one thread."
        write_json(RESULTS / "methods.json", {"about": about, "rows": rows})
        write_text(
            RESULTS / "methods.md",
            f"{HEADING}{about}\n\n{table(rows)}\n![accuracy against sites and against time](methods.png)\n",
        )
        picture(rows, RESULTS / "methods.png")


if __name__ == "__main__":
    main()
