"""Measure the ops on this machine and keep the figures: python benchmarks/record.py [entries ...]

Writes benchmarks/results/cpu.json (rows, machine and versions) and benchmarks/results/cpu.png (ratio to the floor by
size). On a machine with other work the ratios are unreliable: the load average is recorded too.
"""

import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

from layercollapse import __version__, bench, ops

mpl.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
SIZES = [10_000, 100_000, 1_000_000, 5_000_000, 25_000_000]


def machine():
    info = Path("/proc/cpuinfo")
    models = (
        [row.split(":")[1].strip() for row in info.read_text().splitlines() if row.startswith("model name")]
        if info.exists()
        else []
    )
    return {
        "cpu": models[0] if models else platform.processor(),
        "threads": torch.get_num_threads(),
        "backend": ops.backends()["cpu"].detail,
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "layercollapse": __version__,
    }


def draw(rows, path):
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for axis, op in zip(axes, ("sign_histogram", "masked_topk_"), strict=True):
        lines = {}
        for row in rows:
            if row["op"] == op and " × " not in row["shape"]:
                key = (row["provider"], row["dtype"], row["layout"])
                lines.setdefault(key, []).append((row["entries"], row["ratio"]))
        for (provider, dtype, layout), points in lines.items():
            ours = provider == "layercollapse"
            if not ours and (dtype != "float32" or layout == "channels_last"):
                continue
            label = f"{dtype}, {layout}" if ours else provider
            axis.plot(
                *zip(*sorted(points), strict=True),
                marker="o",
                lw=2 if ours else 1,
                ls="-" if ours else ":",
                label=label,
            )
        axis.axhline(1, color="black", lw=0.8)
        axis.set(title=op, xlabel="entries", xscale="log", yscale="log")
        axis.legend(fontsize=7)
    axes[0].set_ylabel("time / time of touching the same bytes")
    figure.savefig(path, dpi=130)


def main():
    sizes = [int(argument) for argument in sys.argv[1:]] or SIZES
    print(bench.HEADER)
    rows = []
    for size in sizes:
        for row in bench.main([size], progress=lambda row: print(bench.line(row), flush=True)):
            rows.append({**asdict(row), "entries": size})
    RESULTS.mkdir(exist_ok=True)
    record = {"machine": machine(), "rows": rows}
    (RESULTS / "cpu.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(rows, RESULTS / "cpu.png")


if __name__ == "__main__":
    main()
