"""Compile every Triton kernel to machine code, without a GPU, and print what it takes of one.

    python -m layercollapse.kernels.compile --arch 80 90 100

Columns: registers per thread, bytes of shared memory per program, bytes of local memory per thread (spills), bytes of
code. The exit status is 1 if a kernel spills more than SPILLS_ALLOWED.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from layercollapse.kernels import apply_mask as masking
from layercollapse.kernels import masked_topk as topk
from layercollapse.kernels import sign_hashes as hashes
from layercollapse.kernels import sign_histogram as signs
from layercollapse.kernels import sign_kernels

ARCHITECTURES = (80, 90, 100)
SPILLS_ALLOWED = 8  # bytes: one value, which ptxas for sm_80 sometimes puts aside for the sake of occupancy
SELECTING = 64  # in kernels of few registers whose last program selects: there, not in the loop over values


class Variant(NamedTuple):
    """One compilation: a kernel, the types of its pointers, its constants."""

    name: str
    kernel: Any
    pointers: dict[str, str]
    constants: dict[str, Any]
    warps: int
    maxnreg: int | None = None


def variants() -> Iterator[Variant]:
    """Yield the kernels as the launchers call them, for each type of value."""
    for dtype, short in ((torch.float32, "fp32"), (torch.bfloat16, "16-bit")):
        for upper in (None, 6.0):
            wide = signs._of_type(dtype, upper, packed=True)[1]
            wide |= {"N_OUT": 4 if upper is None else 5, "UNROLL": signs.LIMITS.unroll}
            label = f"{short}{' upper' if upper else ''}"
            words, table = {"x_ptr": "*u32", "out_ptr": "*i64"}, {"table_ptr": "*i64"}
            for shape, cols, runs in (("last", 512, False), ("last, few", 32, False), ("first", 512, True)):
                shared = wide | {"RUNS": runs, "NESTED": False, "COLS": cols, "ROWS": signs.LIMITS.block // cols}
                yield Variant(f"columns, channels {shape}, {label}", sign_kernels.columns_kernel, words, shared, 4)
                yield Variant(
                    f"columns of a list, {shape}, {label}", sign_kernels.columns_list_kernel, table, shared, 4
                )
            block = wide | {"BLOCK": signs.LIMITS.block}
            yield Variant(f"runs, {label}", sign_kernels.runs_kernel, words, block, 4)
            yield Variant(f"runs of a list, {label}", sign_kernels.runs_list_kernel, table, block, 4)
        narrow = {"LEFT": 0 if dtype == torch.float32 else 16, "N_OUT": 5, "SAMPLES": 16, "CHANNELS": 64}
        entry = {"x_ptr": "*u32" if dtype == torch.float32 else "*u16", "out_ptr": "*i64"}
        yield Variant(f"strided, {short} upper", sign_kernels.strided_kernel, entry, narrow, 4)
    tables = dict.fromkeys(("ids_ptr", "parts_ptr", "segments_ptr", "groups_ptr", "dims_ptr", "ranks_ptr"), "*i64")
    tables |= dict.fromkeys(("gate_ptr", "state_ptr", "sums_ptr", "ties_ptr"), "*i64")
    tables |= {"bins_ptr": "*i32", "sample_ptr": "*u32", "thresholds_ptr": "*u32"}
    yield Variant("bracket", topk._bracket_kernel, tables, {"SAMPLE": topk.SAMPLE}, 16)
    for kind, short in enumerate(("fp32", "bf16", "fp16", "bf16 mixed", "fp16 mixed")):
        for strided in (False, True):
            constants = {"KIND": kind, "STRIDED": strided, "TILE": topk.TILE_STRIDED if strided else topk.TILE}
            label = f"{short}{' strided' if strided else ''}"
            yield Variant(f"count, {label}", topk._count_kernel, tables, constants | {"ROWS": 512}, 4, topk.REGISTERS)
            yield Variant(f"apply, {label}", topk._apply_kernel, tables, constants, 4)
    for short, entry, infinity in (("fp32", "*u32", 0x7F800000), ("16-bit", "*u16", 0x7F80)):
        # Constants in place of what the launcher specializes for: strides that are 1, or multiples of 16.
        layouts = {"last": (1, 768), "first": (3136, 1)}
        for place, (channel_stride, stride) in layouts.items():
            constants = {
                "channel_stride": channel_stride,
                "stride_2": stride,
                "channels": 768,
                "size_2": 3136,
                "start": 0,
            }
            constants |= {"start": 0, "INFINITY": infinity, "ALONE": False}
            words = {"x_ptr": entry, "out_ptr": "*i64"}
            yield Variant(f"hashes, channels {place}, {short}", hashes._sign_hashes_kernel, words, constants, 4)
    tiles = {"TILE": masking.TILE, "PART": masking.PART}
    yield Variant("apply_mask", masking._apply_mask_kernel, {"table_ptr": "*i64"}, tiles, 4)


def compile_variant(variant: Variant, arch: int) -> Any:
    """Return Triton's compiled kernel for compute capability arch / 10."""
    names = variant.kernel.arg_names
    scalars = {name: variant.pointers.get(name, "i32") for name in names}
    signature = {name: "constexpr" if name in variant.constants else kind for name, kind in scalars.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(variant.kernel, signature, {(names.index(k),): v for k, v in variant.constants.items()}, aligned)
    options = {"num_warps": variant.warps, "maxnreg": variant.maxnreg}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources(cubin: bytes) -> dict[str, int]:
    """Return what cuobjdump, which comes with Triton, says of the one kernel in it."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}


def main() -> int:
    """Compile and print; return whether a kernel spills too much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=list(ARCHITECTURES), help="80 90 100")
    parser.add_argument("--exactly", nargs="+", help="only the kernels of these names")
    arguments = parser.parse_args()
    spilled = 0
    print(f"Triton {triton.__version__}\n{'kernel':40} {'arch':>6} {'regs':>5} {'shared':>7} {'local':>6} {'code':>7}")
    for variant in variants():
        if arguments.exactly and variant.name not in arguments.exactly:
            continue
        for arch in arguments.arch:
            compiled = compile_variant(variant, arch)
            use = resources(compiled.asm["cubin"])
            spills = use["STACK"] + use["LOCAL"]
            spilled |= spills > (SELECTING if variant.maxnreg else SPILLS_ALLOWED)
            print(
                f"{variant.name:40} sm_{arch:<3} {use['REG']:5} {compiled.metadata.shared:7} {spills:6} "
                f"{len(compiled.asm['cubin']):7}",
                flush=True,
            )
    return int(spilled)


if __name__ == "__main__":
    sys.exit(main())
