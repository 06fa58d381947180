"""Measure the ops on this machine and keep the figures: python benchmarks/record.py [--quick]

First the project's goals at their full sizes, then how the time grows with the size. About five minutes on two quiet
cores. Writes benchmarks/results/cpu.json (rows, machine and versions) and cpu.png (ratio to the floor by size); with
--quick, in seconds, small sizes into a temporary folder, to see that everything works.
"""

import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import matplotlib as mpl

from layercollapse.ops import bench
from layercollapse.ops.bench_cases import OURS, by_size, goals

mpl.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
SIZES = [10_000, 100_000, 1_000_000, 10_000_000]


def draw(rows, path):
    figure, axes = plt.subplots(1, 4, figsize=(21, 5.5), sharey=True, layout="constrained")
    for axis, op in zip(axes, ("sign_histogram", "sign_hashes", "masked_topk_", "apply_mask_"), strict=True):
        lines = {}
        for row in rows:
            many = row["shape"].split(" × ")[0] + " tensors, " if " × " in row["shape"] else ""
            lines.setdefault((row["provider"], many + row["dtype"], row["layout"]), []).append(row)
        for (provider, dtype, layout), points in lines.items():
            if points[0]["op"] != op:
                continue
            ours = provider == OURS
            if not ours and (dtype != "float32" or layout == "channels_last"):
                continue
            axis.plot(
                [row["entries"] for row in points],
                [row["ratio"] for row in points],
                marker="o",
                lw=2 if ours else 1,
                ls="-" if ours else ":",
                label=f"{dtype}, {layout}" if ours else provider,
            )
        axis.axhline(1, color="black", lw=0.8)
        axis.set(title=op, xlabel="entries", xscale="log", yscale="log")
        axis.legend(
            fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16)
        )  # outside: lines go everywhere
    axes[0].set_ylabel("time / time of touching the same bytes")
    figure.savefig(path, dpi=130)


def main():
    quick = "--quick" in sys.argv[1:]
    folder = Path(tempfile.mkdtemp()) if quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    machine, start, table = bench.machine(), time.perf_counter(), bench.Table()
    print("\n".join(f"{key}: {value}" for key, value in machine.items()))
    reached = [] if quick else bench.run(goals(), progress=table.add)
    growth = bench.run(by_size(SIZES[:2] if quick else SIZES), repeats=3 if quick else 15, progress=table.add)
    record = {
        "machine": machine,
        "goals": [asdict(row) for row in reached],
        "growth": [asdict(row) for row in growth],
    }
    (folder / "cpu.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(record["growth"], folder / "cpu.png")
    print(f"\n{folder / 'cpu.json'}, cpu.png: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
