"""Measure both ops on a GPU: agreement, ceilings, sizes, adversarial data, peers, the probe's overhead.

    python benchmarks/gpu.py --out FOLDER            # needs a GPU; stops adding cases after --seconds
    python benchmarks/gpu.py --out FOLDER --dry      # the same code on the CPU with tiny sizes; its times mean nothing

Writes gpu.json (every row), gpu.txt (the table) and gpu.png. Times are medians in ms; before each timed call a buffer
larger than the second-level cache is written. Floors: N bytes at the measured speed of a sum (sign_histogram), 2 R
bytes, one read and one write, at the measured speed of a copy (masked_topk_).
"""

from __future__ import annotations

import argparse
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import triton
from torch import Tensor, nn
from torch.nn.utils import prune

from layercollapse import EntropyProbe, ops
from layercollapse.files import write_json, write_text

MB = 1 << 20
BYTES = {torch.float32: 4, torch.bfloat16: 2, torch.float16: 2}


class Bench:
    """Times calls, keeps rows, and knows when to stop."""

    def __init__(self, dry: bool, seconds: float) -> None:
        self.dry = dry
        self.device = torch.device("cpu" if dry else "cuda")
        self.end = time.monotonic() + seconds
        self.rows: list[dict[str, object]] = []
        self.skipped: list[str] = []
        self.failed: list[str] = []
        self.cache = torch.empty(1 if dry else 256 * MB, dtype=torch.uint8, device=self.device)
        self.repeats = 1 if dry else 15
        self.copy_speed = self.sum_speed = 1.0  # bytes per ms

    def time(self, call: Callable[[], object], reset: Callable[[], object] = lambda: None, slow: bool = False) -> float:
        """Median ms of a call, after one that does not count; reset runs before each, outside the time."""
        times = []
        for repeat in range(1 + (1 if self.dry else 3 if slow else self.repeats)):
            reset()
            self.cache.zero_()
            if self.dry:
                start = time.perf_counter()
                call()
                taken = (time.perf_counter() - start) * 1e3
            else:
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                call()
                end.record()
                end.synchronize()
                taken = begin.elapsed_time(end)
            if repeat:
                times.append(taken)
        return statistics.median(times)

    def case(self, name: str, make: Callable[[], Iterator[dict[str, object]]]) -> None:
        """Run one group of rows, unless time or memory ran out; a failure is a row, not the end."""
        if time.monotonic() > self.end:
            self.skipped.append(name)
            return
        try:
            for row in make():
                self.rows.append({"case": name, **row})
                print("  ".join(f"{key}={_short(value)}" for key, value in self.rows[-1].items()), flush=True)
        except torch.OutOfMemoryError:
            self.skipped.append(f"{name}: out of memory")
        except Exception:
            traceback.print_exc()
            self.failed.append(name)
        finally:
            if not self.dry:
                torch.cuda.empty_cache()


def _short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def backends(bench: Bench) -> list[str]:
    """The GPU backends that run here; in a dry run those that tests/ can simulate."""
    found = [name for name in ("triton", "cuda") if ops.backends()[name].available]
    if not found:
        raise SystemExit(f"no GPU backend: {ops.backends()}")
    return found


# --- ceilings ---------------------------------------------------------------------------------------------


def ceilings(bench: Bench) -> Iterator[dict[str, object]]:
    size = 1 << 12 if bench.dry else 1 << 30
    x = torch.randn(size, device=bench.device)
    y = torch.empty_like(x)
    ms = bench.time(lambda: y.copy_(x))
    bench.copy_speed = 2 * x.nbytes / ms
    yield {"what": "copy, read + write", "ms": ms, "GB/s": bench.copy_speed / 1e6}
    ms = bench.time(x.sum)
    bench.sum_speed = x.nbytes / ms
    yield {"what": "sum, read", "ms": ms, "GB/s": bench.sum_speed / 1e6}


# --- sign_histogram ---------------------------------------------------------------------------------------

LAYOUTS = {
    # shape of one sample, channel dimension
    "first, 56x56": ((256, 56, 56), 1),
    "first, 7x7": ((2048, 7, 7), 1),
    "last, 768": ((197, 768), -1),
    "first, 224x224": ((16, 224, 224), 1),
}


def eager_counts(x: Tensor, channel_dim: int) -> Tensor:
    dims = [dim for dim in range(x.dim()) if dim != channel_dim % x.dim()]
    return torch.stack([(x < 0).sum(dims), (x == 0).sum(dims), (x > 0).sum(dims)], 1)


def sign_rows(bench: Bench, size: int, dtype: torch.dtype, layout: str) -> Iterator[dict[str, object]]:
    shape, channel_dim = LAYOUTS[layout]
    if bench.dry:
        shape = tuple(min(extent, 8) for extent in shape)
    samples = max(1, size // (torch.Size(shape).numel() * BYTES[dtype]))
    x = torch.randn(samples, *shape, dtype=dtype, device=bench.device)
    floor = x.nbytes / bench.sum_speed
    expected = eager_counts(x, channel_dim) if size <= 1024 * MB else None
    for name in backends(bench):
        with ops.use_backend(name):
            counts = ops.sign_histogram(x, channel_dim=channel_dim)
            assert expected is None or torch.equal(counts[:, :3], expected), (name, layout, dtype)
            assert int(counts.sum()) == x.numel()
            counts.zero_()
            ms = bench.time(lambda: ops.sign_histogram(x, channel_dim=channel_dim, out=counts))  # noqa: B023
        yield {"provider": name, "ms": ms, "GB/s": x.nbytes / ms / 1e6, "of floor": floor / ms}
    if size <= 1024 * MB:
        ms = bench.time(lambda: eager_counts(x, channel_dim), slow=True)
        yield {"provider": "eager", "ms": ms, "GB/s": x.nbytes / ms / 1e6, "of floor": floor / ms}


# --- masked_topk_ -----------------------------------------------------------------------------------------

DATA: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda w: w.normal_(),
    "equal": lambda w: w.fill_(-0.5),
    "two values": lambda w: w.bernoulli_().sub_(2),
    "sorted": lambda w: torch.linspace(0, 1, w.numel(), out=w) if w.dtype == torch.float32 else w.uniform_().sort()[0],
}


def agrees(before: Tensor, after: Tensor, mask: Tensor, k: int, threshold: float) -> None:
    """Exactly k cleared; none left below the threshold, none cleared above it; nothing else changed."""
    keep = ops.unpack_mask(mask, after.shape)
    assert int((~keep).sum()) == k
    magnitude = before.abs().float()
    assert k == 0 or float(magnitude[~keep].max()) == threshold
    assert k == before.numel() or float(magnitude[keep].min()) >= threshold
    assert torch.equal(torch.where(keep, before, 0), after)


def topk_rows(
    bench: Bench, entries: int, dtype: torch.dtype, share: float, data: str, *, tensors: int, peers: bool
) -> Iterator[dict[str, object]]:
    size = entries // tensors // 8 * 8
    source = DATA[data](torch.empty(size * tensors, dtype=dtype, device=bench.device))
    weight = source.clone()
    mask = torch.full((source.numel() // 8,), 255, dtype=torch.uint8, device=bench.device)
    weights, masks = list(weight.split(size)), list(mask.split(size // 8))
    k = int(share * source.numel())
    floor = 2 * source.nbytes / bench.copy_speed

    def reset() -> None:
        weight.copy_(source)
        mask.fill_(255)

    for name in backends(bench):
        with ops.use_backend(name):
            reset()
            threshold = float(ops.masked_topk_(weights, masks, k, scope="global"))
            if source.numel() <= 1 << 26:
                agrees(source, weight, mask, k, threshold)
            peak = 0
            if not bench.dry:
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated()
            ms = bench.time(lambda: ops.masked_topk_(weights, masks, k, scope="global"), reset)
            if not bench.dry:
                peak = torch.cuda.max_memory_allocated() - held
        yield {"provider": name, "ms": ms, "x floor": ms / floor, "temporaries MB": peak / MB}
    if not peers:
        return

    def by_sort() -> None:
        keep = torch.ones_like(weight, dtype=torch.bool)
        keep[weight.abs().argsort(stable=True)[:k]] = False
        weight.mul_(keep)

    yield {"provider": "torch.sort", "ms": (ms := bench.time(by_sort, reset, slow=True)), "x floor": ms / floor}
    ms = bench.time(lambda: weight.abs().topk(k, largest=False), reset, slow=True)
    yield {"provider": "torch.topk, select only", "ms": ms, "x floor": ms / floor}
    if source.numel() <= 1 << 24:
        ms = bench.time(lambda: weight.abs().kthvalue(max(1, k)), reset, slow=True)
        yield {"provider": "torch.kthvalue, select only", "ms": ms, "x floor": ms / floor}
        module = nn.Linear(1, 1)

        def fresh() -> None:
            nonlocal module
            module = nn.Linear(1, 1).to(bench.device)
            module.weight = nn.Parameter(source.clone())

        def pruned() -> None:
            prune.global_unstructured([(module, "weight")], prune.L1Unstructured, amount=k)

        ms = bench.time(pruned, fresh, slow=True)
        yield {"provider": "prune.global_unstructured", "ms": ms, "x floor": ms / floor}


# --- the probe --------------------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width),
        )  # fmt: skip
        self.skip = nn.Sequential()
        if stride > 1 or inputs != 4 * width:
            self.skip = nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.skip(x))


def resnet50(scale: int = 1) -> nn.Module:
    """ResNet-50; scale divides its widths."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64 // scale, 7, 2, 3, bias=False), nn.BatchNorm2d(64 // scale), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    inputs = 64 // scale
    for stage, depth in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage // scale
        for block in range(depth):
            layers.append(Bottleneck(inputs, width, 2 if stage and not block else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 64
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, 64)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class ViT(nn.Module):
    """ViT-B/16 by default."""

    def __init__(self, width: int = 768, depth: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(depth)])
        self.head = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def probe_rows(bench: Bench, name: str) -> Iterator[dict[str, object]]:
    model = (resnet50(8 if bench.dry else 1) if name == "ResNet-50" else ViT(64, 1) if bench.dry else ViT()).eval()
    side, batch = (32, 1) if bench.dry else (224, 64)
    x = torch.randn(batch, 3, side, side, device=bench.device, dtype=torch.bfloat16)
    model.to(bench.device, torch.bfloat16)
    if name == "ResNet-50":
        model.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        plain = bench.time(lambda: model(x))
        for backend in backends(bench):
            with ops.use_backend(backend), EntropyProbe(model):
                ms = bench.time(lambda: model(x))
            yield {"provider": backend, "ms": ms, "plain ms": plain, "overhead %": 100 * (ms / plain - 1)}


# --- all --------------------------------------------------------------------------------------------------


def measure(bench: Bench) -> None:
    """Most important cases first: what comes after the time is up is named in the output."""
    scale = 1 << 14 if bench.dry else 1  # divides every size
    bench.case("ceilings", lambda: ceilings(bench))

    def signs(megabytes: int, dtype: torch.dtype, layout: str) -> None:
        size = megabytes * MB // scale
        bench.case(f"sign_histogram {size / MB:g} MB {dtype} {layout}", lambda: sign_rows(bench, size, dtype, layout))

    def topk(
        entries: int,
        dtype: torch.dtype,
        share: float = 0.5,
        data: str = "normal",
        *,
        tensors: int = 1,
        peers: bool = False,
    ) -> None:
        entries = max(64, entries // scale)
        name = f"masked_topk_ {entries / 1e6:g}M {dtype} k={share:g} {data} in {tensors}"
        bench.case(name, lambda: topk_rows(bench, entries, dtype, share, data, tensors=tensors, peers=peers))

    half, single = torch.bfloat16, torch.float32
    for layout in LAYOUTS:
        signs(256, half, layout)
    topk(1 << 30, half)
    topk(1 << 24, half, peers=True)
    topk(1 << 26, half, tensors=160)
    bench.case("probe ResNet-50", lambda: probe_rows(bench, "ResNet-50"))
    bench.case("probe ViT-B", lambda: probe_rows(bench, "ViT-B"))
    for layout in LAYOUTS:
        signs(256, single, layout)
    for megabytes in (1, 16, 64, 1024, 8192):
        signs(megabytes, half, "first, 56x56")
        signs(megabytes, half, "last, 768")
    for dtype in (half, single):
        for entries in (1 << 19, 1 << 22, 1 << 26, 1 << 28):
            topk(entries, dtype)
        for share in (0.01, 0.1, 0.9):
            topk(1 << 26, dtype, share)
        for data in ("equal", "two values", "sorted"):
            topk(1 << 26, dtype, data=data)
    topk(1 << 28, half, peers=True)
    topk(1 << 30, single)
    topk(1 << 26, torch.float16)
    signs(256, torch.float16, "last, 768")
    topk(1 << 32, half)


def table(bench: Bench) -> str:
    lines = []
    for row in bench.rows:
        values = "  ".join(f"{key} {_short(value)}" for key, value in row.items() if key not in ("case", "provider"))
        lines.append(f"{row['case']:62} {row.get('provider', row.get('what', '')):28} {values}".replace("torch.", ""))
    lines += [f"not measured: {name}" for name in bench.skipped]
    lines += [f"FAILED: {name}" for name in bench.failed]
    return "\n".join(lines) + "\n"


def picture(bench: Bench, path: Path) -> None:
    try:
        import matplotlib as mpl
    except ImportError:
        return
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 8))
    for axis, op, key in zip(axes, ("sign_histogram", "masked_topk_"), ("of floor", "x floor"), strict=True):
        rows = [row for row in bench.rows if str(row["case"]).startswith(op) and row["provider"] in ("triton", "cuda")]
        names = list(dict.fromkeys(str(row["case"]).removeprefix(op) for row in rows))
        for provider in ("triton", "cuda"):
            mine = [row for row in rows if row["provider"] == provider]
            places = [names.index(str(row["case"]).removeprefix(op)) for row in mine]
            axis.plot([row[key] for row in mine], places, "o", label=provider)
        axis.set_yticks(range(len(names)), [name.replace("torch.", "") for name in names], fontsize=6)
        axis.set_title(f"{op}: {'fraction' if key == 'of floor' else 'multiple'} of the floor")
        axis.axvline(1, color="gray")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--seconds", type=float, default=150)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.dry, arguments.seconds)
    torch.manual_seed(0)
    about = {
        "device": "dry run" if bench.dry else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "backends": {name: status.detail for name, status in ops.backends().items()},
    }
    print(about, flush=True)
    measure(bench)
    write_json(
        arguments.out / "gpu.json", {**about, "rows": bench.rows, "not measured": bench.skipped, "failed": bench.failed}
    )
    text = f"{about}\n{table(bench)}"
    write_text(arguments.out / "gpu.txt", text)
    picture(bench, arguments.out / "gpu.png")
    print(f"\n{text}")
    raise SystemExit(bool(bench.failed))


if __name__ == "__main__":
    main()
