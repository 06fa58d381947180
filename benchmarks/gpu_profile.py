"""What the hardware counters say of each kernel: ncu ... python benchmarks/gpu_profile.py (benchmarks/gpu.sh does it).

Runs each op once on each backend that there is, after a call that compiles and plans, between cudaProfilerStart and
Stop, in a range of NVTX that says which op on what. `--table FILE` reads what ncu wrote (`--csv --page raw --nvtx`) and
prints a line for each kernel.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator
from functools import partial

import torch

from layercollapse import ops

# Of ncu, and what the table calls it.
METRICS = {
    "gpu__time_duration.sum": "us",
    "dram__bytes_read.sum": "read MB",
    "dram__bytes_write.sum": "written MB",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "dram %",
    "sm__inst_executed.sum": "instructions M",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "issue %",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps %",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": "wait memory",
    "smsp__average_warps_issue_stalled_short_scoreboard_per_issue_active.ratio": "wait shared",
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio": "wait barrier",
    "smsp__average_warps_issue_stalled_lg_throttle_per_issue_active.ratio": "wait lg queue",
    "smsp__average_warps_issue_stalled_mio_throttle_per_issue_active.ratio": "wait mio queue",
    "smsp__average_warps_issue_stalled_math_pipe_throttle_per_issue_active.ratio": "wait pipe",
    "smsp__average_warps_issue_stalled_wait_per_issue_active.ratio": "wait fixed",
    "launch__registers_per_thread": "registers",
    "launch__grid_size": "blocks",
    "launch__block_size": "threads",
}
SCALE = {"us": {"ns": 1e-3, "us": 1, "ms": 1e3}, "MB": {"byte": 1e-6, "Kbyte": 1e-3, "Mbyte": 1, "Gbyte": 1e3}}


Call = Callable[[], object]


def cases() -> Iterator[tuple[str, Callable[[], tuple[Call, Call]]]]:
    """What is profiled: a name, and a function that makes the inputs and returns what resets them, and the call."""
    half, single = torch.bfloat16, torch.float32

    def signs(op: Callable[..., object], dtype: torch.dtype, channel_dim: int, *shape: int) -> tuple[Call, Call]:
        x = torch.randn(*shape, dtype=dtype, device="cuda")
        return lambda: None, lambda: op(x, channel_dim=channel_dim)

    layouts = (("56x56", 1, 160, 256, 56, 56), ("7x7", 1, 1280, 2048, 7, 7), ("last", -1, 840, 197, 768))
    for dtype, part in ((half, 1), (single, 2)):
        for layout, channel_dim, samples, *shape in layouts:
            arguments = (ops.sign_histogram, dtype, channel_dim, samples // part, *shape)
            yield f"histogram {layout} {dtype}", partial(signs, *arguments)
    for layout, channel_dim, samples, *shape in (layouts[0], layouts[2]):
        yield f"hashes {layout}", partial(signs, ops.sign_hashes, half, channel_dim, samples, *shape)

    def topk(dtype: torch.dtype) -> tuple[Call, Call]:
        source = torch.randn(1 << 28, dtype=dtype, device="cuda")
        weight, mask = source.clone(), torch.full((source.numel() // 8,), 255, dtype=torch.uint8, device="cuda")

        def reset() -> None:
            weight.copy_(source)
            mask.fill_(255)

        return reset, lambda: ops.masked_topk_([weight], [mask], weight.numel() // 2, scope="global")

    def apply() -> tuple[Call, Call]:
        weight = torch.randn(1 << 28, dtype=half, device="cuda")
        mask = torch.randint(0, 256, (weight.numel() // 8,), dtype=torch.uint8, device="cuda")
        return lambda: None, lambda: ops.apply_mask_([weight], [mask])

    yield "topk bfloat16", partial(topk, half)
    yield "topk float32", partial(topk, single)
    yield "apply_mask", apply


def profile() -> None:
    torch.manual_seed(0)
    runtime = torch.cuda.cudart()
    for backend in ("cuda", "triton"):
        if not ops.backends()[backend].available:
            continue
        for name, make in cases():
            with ops.use_backend(backend):
                reset, call = make()
                reset()
                call()
                reset()
                torch.cuda.synchronize()
                with torch.cuda.nvtx.range(f"{backend} {name}"):
                    runtime.cudaProfilerStart()
                    call()
                    torch.cuda.synchronize()
                    runtime.cudaProfilerStop()
                del reset, call
                torch.cuda.empty_cache()


def table(path: str) -> None:
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [row for row in file if row.startswith('"')]
    rows = list(csv.DictReader(lines))
    if not rows:
        raise SystemExit(f"{path}: no kernel was profiled")
    units, *kernels = rows
    print("; ".join(METRICS.values()))
    for kernel in kernels:
        where = next((v for k, v in kernel.items() if k and "Push/Pop_Range" in k and v), "")
        cells = []
        for metric, short in METRICS.items():
            text = (kernel.get(metric) or "nan").replace(",", "")  # "nan": this ncu has no such metric
            value = float(text) * SCALE.get(short.split()[-1], {}).get(units.get(metric, ""), 1)
            value *= 1e-6 if short.endswith(" M") else 1
            cells.append(f"{value:.4g}")
        print(f"{kernel['Kernel Name'][:60]} | {where[:80]} | " + "; ".join(cells))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", metavar="FILE")
    arguments = parser.parse_args()
    table(arguments.table) if arguments.table else profile()
