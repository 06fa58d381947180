"""What each strategy is worth: accuracy against sites removed and against time, and against the same layers untrained.

    python benchmarks/methods.py --preset small               # ResNet-18 on all of Fashion-MNIST, three seeds
    python benchmarks/methods.py --data mnist5k --seeds 0     # anything else that the command line knows
    python benchmarks/methods.py --preset small --table       # no work: the table of what is there

A seed's dense network is trained once, and every method starts from it; all get the same data, trainings, epochs,
validation split and accuracy budget. One that refits is another end of the same trainings. The test split is used once,
for what each gives in the end. Every run has a folder in --out; what is done is not made again. Rows and columns that
papers leave out:

- `random` removes any site;
- *from random weights*: test accuracy of the layers that were emitted, with batch norms while they train, after as
  many epochs in one training as the method had in all, those of the dense network included;
- `channels (Torch-Pruning)`: channels go instead, by group magnitude over the whole network, in as many steps and
  epochs; of what is within the budget the smallest is taken (`pip install --no-deps torch-pruning`; left out where it
  is missing).

Times are of one thread, of all emitted networks and the dense one (batch norms folded) in turns in one process. Writes
docs/results/methods.json, methods.md and methods.png; with --dry, only prints the table.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import layercollapse as lc
from layercollapse._util.files import read_json, write_json, write_text
from layercollapse.cli.experiment import Job
from layercollapse.pipeline.latency import BATCH_SIZES, environment, latency, repeat_to
from layercollapse.pipeline.norms import with_norms, without_norms

RESULTS = Path(__file__).parent.parent / "docs" / "results"
FILE = "methods.json"
CHANNELS = "channels (Torch-Pruning)"
# Strategy and mode.
METHODS = {
    "prune": ("prune", "exact"),
    "random": ("random", "exact"),
    "easier": ("easier", "exact"),
    "tlc": ("tlc", "exact"),
    "collapse": ("collapse", "exact"),
    "collapse, refit": ("collapse", "refit"),
    "collapse+prune": ("collapse+prune", "exact"),
}
PRESETS: dict[str, dict[str, Any]] = {
    "small": {"data": "fashion-mnist", "flip": True, "dense_epochs": 20, "epochs": 8, "steps": 3, "max_drop": 0.5},
}
HEADING = """# Strategies compared

Made by `python benchmarks/methods.py`, whose docstring has the protocol.

"""


def dense(job: Job, epochs: int, seed: int, folder: Path) -> dict[str, float]:
    """Train the network that all methods of a seed start from, once; its accuracies in percent."""
    if not (folder / FILE).exists():
        torch.manual_seed(seed)
        model = job.build()
        longer(job, epochs).fit(model)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), folder / "weights.safetensors")
        write_json(folder / FILE, {"validation": job.evaluate(model), "test": job.test(model)})
    return read_json(folder / FILE, "out")


def longer(job: Job, epochs: int) -> Job:
    """The job with other epochs."""
    return Job(**{**job.settings, "epochs": epochs})


def trained(job: Job, folder: Path) -> nn.Module:
    """The dense network of a seed."""
    model = job.build()
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    return model


def scratch(model: nn.Module, job: Job, epochs: int, seed: int) -> float:
    """Test accuracy of a network's layers from random weights, after so many epochs in one training."""
    torch.manual_seed(seed)
    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    trained = with_norms(model, job.training_batches)  # type: ignore[arg-type]
    longer(job, epochs).fit(trained.train())
    return job.test(without_norms(trained))


def collapsed(job: Job, method: str, start: Path, folder: Path, *, seed: int, steps: int, max_drop: float) -> dict:
    """Run a strategy on the dense network of a seed."""
    strategy, mode = METHODS[method]
    before = folder.with_name(folder.name.removesuffix(f"-{mode}"))
    if mode != "exact" and before.exists() and not folder.exists():
        shutil.copytree(before, folder)  # the same trainings: only the end differs
        (folder / FILE).unlink(missing_ok=True)
    result = lc.run(
        trained(job, start),
        train=job.fit,
        evaluate=job.evaluate,
        test=job.test,
        data=job.training_batches,
        test_data=job.test_batches,
        example_inputs=job.example,
        train_first=False,
        strategy=strategy,
        mode=mode,
        steps=steps,
        max_drop=max_drop,
        unit="percent",
        seed=seed,
        out=folder,
        resume=(folder / "run.json").exists(),
        settings=job.settings,
    )
    metrics, record = result.metrics, result.record
    return {
        "top1": metrics["after"]["top1"],
        "gone": len(result.collapse.collapsed),
        "sites": len(result.collapse.sites),
        "depth": metrics["after"]["depth"],
        "parameters": metrics["after"]["parameters"],
        "epochs": (len(record.steps) - 1 + record.retrained) * job.epochs,
        "steps": [[step.sites_collapsed, step.top1_validation] for step in record.steps],
    }


def channels(job: Job, start: Path, folder: Path, *, seed: int, steps: int, max_drop: float) -> dict:
    """Prune channels with Torch-Pruning, a step at a time with training after it, down to a quarter of each group."""
    import torch_pruning

    model = trained(job, start)
    folded = lc.collapse(model.eval(), job.example, cost="macs")
    ends = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == job.dataset.num_classes]
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        job.example[0],
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        global_pruning=True,
        pruning_ratio=0.75,
        max_pruning_ratio=0.9,
        iterative_steps=steps,
        ignored_layers=ends,
    )
    limit = job.evaluate(model) - max_drop
    best, taken = copy.deepcopy(model), [[0, limit + max_drop]]
    for number in range(1, steps + 1):
        pruner.step()
        torch.manual_seed(seed + number)
        job.fit(model.train())
        taken.append([0, job.evaluate(model.eval())])
        if taken[-1][1] >= limit:
            best = copy.deepcopy(model)
    result = lc.collapse(best.eval(), job.example, cost="macs")
    result.save(folder)
    return {
        "top1": job.test(result.model),
        "gone": 0,
        "sites": len(folded.sites),
        "depth": result.after.depth,
        "parameters": result.after.parameters,
        "epochs": steps * job.epochs,
        "steps": taken,
    }


def timed(job: Job, start: Path, folders: Sequence[Path]) -> list[dict[str, float]]:
    """How many times faster each emitted network is than the dense one, by batch size, in turns on one thread."""
    torch.set_num_threads(1)
    folded = lc.collapse(trained(job, start).eval(), job.example, cost="macs").model
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
            *(spread([r[key] for r in own], 2) for key in ("dense", "top1")),
            spread(known, 2) if (known := [r["scratch"] for r in own if r["scratch"] is not None]) else "",
            *(f"{spread([r['faster'][str(size)] for r in own])}x" for size in BATCH_SIZES),
        ]
        seeds = sorted(r["seed"] for r in own)
        some = "" if len(seeds) == len({r["seed"] for r in rows}) else f" (seed {', '.join(map(str, seeds))})"
        lines.append(f"| {method}{some} | {' | '.join(cells)} |")
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
        again = [r for r in own if r["scratch"] is not None]
        right.plot([r["faster"]["64"] for r in again], [r["scratch"] for r in again], "x", color=color)
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
    parser.add_argument("--preset", choices=PRESETS, help="defaults of the options below")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--data", default="mnist5k")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--flip", action="store_true", help="half of the training images are mirrored")
    parser.add_argument("--dense-epochs", type=int, default=8, help="of the dense network")
    parser.add_argument("--epochs", type=int, default=4, help="of every training after it")
    parser.add_argument(
        "--steps", type=int, default=6, help="trainings of each method, and one more of a refitted network"
    )
    parser.add_argument("--max-drop", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=[*METHODS, CHANNELS], metavar="NAME")
    parser.add_argument(
        "--scratch", nargs="*", metavar="NAME", help="methods whose layers are trained from random weights, too [all]"
    )
    parser.add_argument("--table", action="store_true", help="only what is there")
    parser.add_argument("--dry", action="store_true", help="write nothing but the runs")
    known, _ = parser.parse_known_args()
    parser.set_defaults(**PRESETS.get(known.preset, {}))
    arguments = parser.parse_args()
    if unknown := set(arguments.methods) - {*METHODS, CHANNELS}:
        parser.error(f"--methods: expected {', '.join([*METHODS, CHANNELS])}, got {', '.join(sorted(unknown))}")
    if CHANNELS in arguments.methods and importlib.util.find_spec("torch_pruning") is None:
        print(f"{CHANNELS}: left out, as torch-pruning is not installed")
        arguments.methods.remove(CHANNELS)
    names = ("data", "model", "width", "epochs", "flip")
    job = Job(**{name: getattr(arguments, name) for name in names})
    rows = [row for seed in arguments.seeds for row in seed_rows(arguments, job, seed)]
    if not rows:
        raise SystemExit(f"{arguments.out}: no run is done")
    about = (
        f"{job.model}, width {job.width}, on {job.data}{', mirrored' * job.flip}: {arguments.dense_epochs} epochs for "
        f"the dense network, then {job.epochs} a training, {arguments.steps} steps, {arguments.max_drop:g} points on "
        f"validation, seeds {', '.join(map(str, sorted({row['seed'] for row in rows})))}."
    )
    print(f"{about}\n\n{table(rows)}")
    if not arguments.dry:
        about += f" {environment(torch.device('cpu'))['device']}, one thread."
        write_json(RESULTS / "methods.json", {"about": about, "rows": rows})
        write_text(
            RESULTS / "methods.md",
            f"{HEADING}{about}\n\n{table(rows)}\n![accuracy against sites and against time](methods.png)\n",
        )
        picture(rows, RESULTS / "methods.png")


def seed_rows(arguments: argparse.Namespace, job: Job, seed: int) -> list[dict[str, Any]]:
    """What there is of a seed in the end, after making what is missing."""
    start = arguments.out / f"{job.data}-{job.model}-{seed}-dense"
    if arguments.table and not (start / FILE).exists():
        return []
    accuracies = dense(job, arguments.dense_epochs, seed, start)
    done: list[tuple[dict[str, Any], Path]] = []
    for method in arguments.methods:
        folder = start.with_name(f"{job.data}-{job.model}-{seed}-{method.replace(' ', '').replace(',', '-')}")
        if not (folder / FILE).exists():
            if arguments.table:
                continue
            options = {"seed": seed, "steps": arguments.steps, "max_drop": arguments.max_drop}
            torch.manual_seed(seed)
            if method == CHANNELS:
                row = channels(job, start, folder, **options)
            else:
                row = collapsed(job, method, start, folder, **options)
            row = {"method": method, "seed": seed, "dense": accuracies["test"], **row}
            row["epochs"] += arguments.dense_epochs
            again = arguments.scratch is None or method in arguments.scratch
            row["scratch"] = scratch(lc.load(folder), job, row["epochs"], seed) if again else None
            write_json(folder / FILE, row)
            print(f"seed {seed}, {method}: {row['gone']} of {row['sites']}, {row['top1']:.2f} %", flush=True)
        done.append((read_json(folder / FILE, "out"), folder))
    if not arguments.table and any("faster" not in row for row, _ in done):
        for (row, folder), faster in zip(done, timed(job, start, [folder for _, folder in done]), strict=True):
            row["faster"] = faster
            write_json(folder / FILE, row)
    return [row for row, _ in done if "faster" in row]


if __name__ == "__main__":
    main()
