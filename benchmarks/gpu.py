"""Measure the ops on a GPU: agreement, sizes, adversarial data, peers, the probe's overhead, each against its floor.

    python benchmarks/gpu.py --out FOLDER --backend cuda --peers   # needs a GPU; starts no case after --seconds
    python benchmarks/gpu.py --out FOLDER --backend triton         # adds its rows to the same files
    python benchmarks/gpu.py --out FOLDER --backend cuda --dry     # the same code on the CPU with tiny sizes

Writes gpu.json (every row) and gpu.txt (the table, and the goals met or not) after every case, and gpu.png at the end.

Times are medians in ms of calls in turns: each round times the floor and every provider once. Before each of them the
inputs are as at first, and a buffer larger than the second-level cache has been read: written, it would leave dirty
lines, whose way back to memory the call would pay for. Floors move as many bytes, of the same memory: a sum of the N
bytes of an activation (sign_histogram), a copy of the R bytes of the weights onto themselves (masked_topk_, which must
read and write them), a sum of weights and masks, or with the copy where what is masked changes (apply_mask_).
"""

from __future__ import annotations

import argparse
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from gpu_models import ViT, resnet50
from gpu_results import Results, Row, line, picture
from torch import Tensor, nn
from torch.nn.utils import prune

from layercollapse import EntropyProbe, ops

MB = 1 << 20
CHUNK = 1 << 26  # entries that a check looks at together
BYTES = {torch.float32: 4, torch.bfloat16: 2, torch.float16: 2}

Call = Callable[[], object]


class Bench:
    """Times calls, keeps rows, and knows when to stop."""

    def __init__(self, dry: bool, seconds: float, backend: str, peers: bool, results: Results) -> None:
        self.dry, self.backend, self.peers, self.results = dry, backend, peers, results
        self.device = torch.device("cpu" if dry else "cuda")
        self.end = time.monotonic() + seconds
        self.cache = torch.zeros(1 if dry else 256 * MB // 4, device=self.device)
        self.rounds = 1 if dry else 15
        self.runs = ops.backends()[backend].available

    def race(
        self,
        calls: Mapping[str, Call],
        reset: Call = lambda: None,
        *,
        slow: tuple[str, ...] = (),
        around: Callable[[str], AbstractContextManager[object]] = lambda _: nullcontext(),
    ) -> dict[str, float]:
        """Median ms of each call, in turns, after a round that does not count.

        Args:
            calls: by name.
            reset: runs before each, outside the time.
            slow: names of calls that three rounds are enough for.
            around: a context to make each call in, entered outside the time.
        """
        times: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(1 + self.rounds):
            for name, call in calls.items():
                if turn <= 3 or name not in slow:
                    with around(name):
                        reset()
                        self.cache.sum()
                        taken = self._milliseconds(call)
                    if turn:
                        times[name].append(taken)
        return {name: statistics.median(taken) for name, taken in times.items()}

    def _milliseconds(self, call: Call) -> float:
        if self.dry:
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e3
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def forced(self, name: str) -> AbstractContextManager[object]:
        return ops.use_backend(name) if name == self.backend else nullcontext()

    def case(self, name: str, make: Callable[[], Iterator[Row]]) -> None:
        """Run one group of rows, unless time or memory ran out; a failure is a line, not the end.

        A fault that the device keeps is the end of this process: every call after it would fail.
        """
        if time.monotonic() > self.end:
            self.results.skip(name)
            return
        try:
            rows = [{"case": name, **row} for row in make()]
            self.results.add(rows)
            for row in rows:
                print(line(row), flush=True)
        except torch.OutOfMemoryError:
            self.results.skip(f"{name}: out of memory")
        except Exception:
            traceback.print_exc()
            self.results.fail(name)
            if not self.dry:
                torch.cuda.synchronize()
        finally:
            if not self.dry:
                torch.cuda.empty_cache()


def words_of(x: Tensor) -> Tensor:
    """The bytes of a contiguous tensor (but for the last few) as float32, which torch reads at full speed."""
    whole = 4 // x.element_size()
    return x.flatten()[: x.numel() // whole * whole].view(torch.float32)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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


def expected_counts(x: Tensor, channel_dim: int) -> Tensor:
    """eager_counts of a tensor of any size, in pieces."""
    samples = max(1, CHUNK // x[0].numel())
    return torch.stack([eager_counts(part, channel_dim) for part in x.split(samples)]).sum(0)


def activation(bench: Bench, size: int, dtype: torch.dtype, layout: str) -> tuple[Tensor, int]:
    """Random numbers of about so many bytes, and their channel dimension."""
    shape, channel_dim = LAYOUTS[layout]
    if bench.dry:
        shape = tuple(min(extent, 8) for extent in shape)
    samples = max(1, size // (torch.Size(shape).numel() * BYTES[dtype]))
    return torch.randn(samples, *shape, dtype=dtype, device=bench.device), channel_dim


def sign_rows(bench: Bench, size: int, dtype: torch.dtype, layout: str) -> Iterator[Row]:
    x, channel_dim = activation(bench, size, dtype, layout)
    words = words_of(x)
    calls: dict[str, Call] = {"floor": words.sum}
    if bench.runs:
        with ops.use_backend(bench.backend):
            counts = ops.sign_histogram(x, channel_dim=channel_dim)
            assert torch.equal(counts[:, :3], expected_counts(x, channel_dim)), (layout, dtype)
            assert not counts[:, 3].any()
            calls[bench.backend] = lambda: ops.sign_histogram(x, channel_dim=channel_dim, out=counts)
    if bench.peers and size <= 1024 * MB:
        calls["eager"] = lambda: eager_counts(x, channel_dim)
    times = bench.race(calls, slow=("eager",), around=bench.forced)
    floor = times.pop("floor")
    about = {"op": "sign_histogram", "dtype": name_of(dtype), "bytes": x.nbytes}
    about |= {"floor ms": floor, "floor GB/s": x.nbytes / floor / 1e6}
    for name, ms in times.items():
        yield {"provider": name, **about, "ms": ms, "GB/s": x.nbytes / ms / 1e6, "of floor": floor / ms}


def resnet_shapes() -> list[tuple[int, int]]:
    """Channels and side of the maps at the 49 rectifiers of a ResNet-50, for images of 224x224."""
    shapes = [(64, 112)]
    for stage, depth in enumerate((3, 4, 6, 3)):
        width, side = 64 << stage, 56 >> stage
        for block in range(depth):
            first = 2 * side if stage and not block else side  # the stride is in the second convolution
            shapes += [(width, first), (width, side), (4 * width, side)]
    return shapes


def list_rows(bench: Bench, samples: int, dtype: torch.dtype) -> Iterator[Row]:
    scale = 16 if bench.dry else 1
    shapes = [(samples, max(1, side // scale), max(1, side // scale), c // scale) for c, side in resnet_shapes()]
    sizes = [torch.Size(shape).numel() for shape in shapes]
    flat = torch.randn(sum(sizes), dtype=dtype, device=bench.device)
    xs = [part.view(shape).permute(0, 3, 1, 2) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
    calls: dict[str, Call] = {"floor": words_of(flat).sum}
    if bench.runs:
        with ops.use_backend(bench.backend):
            counts = ops.sign_histogram(xs)
            for got, x in zip(counts, xs, strict=True):
                assert torch.equal(got[:, :3], eager_counts(x, 1))
        calls[bench.backend] = lambda: ops.sign_histogram(xs, out=counts)
        calls["one by one"] = lambda: [ops.sign_histogram(x, out=out) for x, out in zip(xs, counts, strict=True)]
    times = bench.race(calls, around=lambda name: bench.forced(bench.backend if name == "one by one" else name))
    floor = times.pop("floor")
    about = {"op": "sign_histogram", "dtype": name_of(dtype), "bytes": flat.nbytes, "floor ms": floor}
    for name, ms in times.items():
        label = f"{bench.backend}, {name}" if name == "one by one" else name
        yield {"provider": label, **about, "ms": ms, "GB/s": flat.nbytes / ms / 1e6, "of floor": floor / ms}


def hash_rows(bench: Bench, size: int, dtype: torch.dtype, layout: str) -> Iterator[Row]:
    if not bench.runs:
        return
    x, channel_dim = activation(bench, size, dtype, layout)
    with ops.use_backend("reference"):
        some = ops.sign_hashes(x[:4], channel_dim=channel_dim)
    with ops.use_backend(bench.backend):
        assert torch.equal(ops.sign_hashes(x, channel_dim=channel_dim)[:4], some)
        times = bench.race({"floor": words_of(x).sum, "hash": lambda: ops.sign_hashes(x, channel_dim=channel_dim)})
    floor, ms = times["floor"], times["hash"]
    about = {"op": "sign_hashes", "dtype": name_of(dtype), "bytes": x.nbytes, "floor ms": floor}
    yield {"provider": bench.backend, **about, "ms": ms, "GB/s": x.nbytes / ms / 1e6, "of floor": floor / ms}


# --- masked_topk_ -----------------------------------------------------------------------------------------

DATA: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda w: w.normal_(),
    "equal": lambda w: w.fill_(-0.5),
    "two values": lambda w: w.bernoulli_().sub_(2),
    "sorted": lambda w: torch.linspace(0, 1, w.numel(), out=w) if w.dtype == torch.float32 else w.uniform_().sort()[0],
}


def check(before: Tensor, after: Tensor, mask: Tensor, k: int, threshold: float) -> None:
    """What the reference would have done, in pieces: the k smallest went, of equal ones the first, and nothing else."""
    gone, tie_kept = 0, False
    for start in range(0, before.numel(), CHUNK):
        old, new = before[start : start + CHUNK], after[start : start + CHUNK]
        keep = ops.unpack_mask(mask[start // 8 : (start + old.numel() + 7) // 8], old.shape)
        assert torch.equal(torch.where(keep, old, 0), new), "something else changed"
        magnitude = old.abs().float()
        assert not bool((keep & (magnitude < threshold)).any()), "one below the threshold was kept"
        assert not bool((~keep & (magnitude > threshold)).any()), "one above the threshold is gone"
        ties = keep[magnitude == threshold]  # in order
        first_kept = int(ties.int().argmax()) if bool(ties.any()) else ties.numel()
        assert bool(ties[first_kept:].all()), "a tie went after one that was kept"
        assert not (tie_kept and first_kept), "a tie went after one that was kept"
        tie_kept |= first_kept < ties.numel()
        gone += int((~keep).sum())
    assert gone == k, (gone, k)


def topk_rows(
    bench: Bench, entries: int, dtype: torch.dtype, share: float, data: str, *, tensors: int, peers: bool
) -> Iterator[Row]:
    size = entries // tensors // 8 * 8
    source = DATA[data](torch.empty(size * tensors, dtype=dtype, device=bench.device))
    weight = source.clone()
    mask = torch.full((source.numel() // 8,), 255, dtype=torch.uint8, device=bench.device)
    weights, masks = list(weight.split(size)), list(mask.split(size // 8))
    k = int(share * source.numel())
    words = words_of(weight).view(torch.int32)

    def reset() -> None:
        weight.copy_(source)
        mask.fill_(255)

    calls: dict[str, Call] = {"floor": words.bitwise_not_}
    peak = 0
    if bench.runs:
        with ops.use_backend(bench.backend):
            reset()
            if not bench.dry:
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated()
            threshold = float(ops.masked_topk_(weights, masks, k, scope="global"))
            if not bench.dry:
                peak = torch.cuda.max_memory_allocated() - held
            check(source, weight, mask, k, threshold)
            calls[bench.backend] = lambda: ops.masked_topk_(weights, masks, k, scope="global")
    times = bench.race(calls, reset, around=bench.forced)
    floor = times.pop("floor")
    about = {"op": "masked_topk_", "dtype": name_of(dtype), "entries": source.numel(), "bytes": source.nbytes}
    about |= {"floor ms": floor, "floor GB/s": 2 * source.nbytes / floor / 1e6}
    if bench.peers and peers:
        times |= topk_peers(bench, source, weight, k, reset)
    for name, ms in times.items():
        own = {"temporaries MB": peak / MB} if name == bench.backend else {}
        yield {"provider": name, **about, "ms": ms, "x floor": ms / floor, **own}


def topk_peers(bench: Bench, source: Tensor, weight: Tensor, k: int, reset: Call) -> dict[str, float]:
    def by_sort() -> None:
        keep = torch.ones_like(weight, dtype=torch.bool)
        keep[weight.abs().argsort(stable=True)[:k]] = False
        weight.mul_(keep)

    calls: dict[str, Call] = {
        "torch.sort": by_sort,
        "torch.topk, select only": lambda: weight.abs().topk(k, largest=False),
    }
    if source.numel() <= 1 << 24:
        calls["torch.kthvalue, select only"] = lambda: weight.abs().kthvalue(max(1, k))
    times = bench.race(calls, reset, slow=tuple(calls))
    if source.numel() <= 1 << 24:
        module = nn.Linear(1, 1)

        def fresh() -> None:
            nonlocal module
            module = nn.Linear(1, 1).to(bench.device)
            module.weight = nn.Parameter(source.clone())

        def pruned() -> None:
            prune.global_unstructured([(module, "weight")], prune.L1Unstructured, amount=k)

        name = "prune.global_unstructured"
        times |= bench.race({name: pruned}, fresh, slow=(name,))
    return times


# --- apply_mask_ ------------------------------------------------------------------------------------------


def apply_rows(
    bench: Bench, entries: int, dtype: torch.dtype, *, tensors: int, changes: bool, peers: bool
) -> Iterator[Row]:
    """Half of the keep-bits are set, at random; every entry without one has become nonzero (changes), or none has."""
    size = entries // tensors // 8 * 8
    source = torch.randn(size * tensors, dtype=dtype, device=bench.device)
    mask = torch.randint(0, 256, (source.numel() // 8,), dtype=torch.uint8, device=bench.device)
    keep = torch.cat([ops.unpack_mask(part, (8 * part.numel(),)) for part in mask.split(CHUNK // 8)])
    expected = torch.where(keep, source, 0)
    del keep
    weight = source.clone()
    weights, masks = list(weight.split(size)), list(mask.split(size // 8))
    words, mask_words = words_of(weight), words_of(mask)

    def floor() -> None:
        mask_words.sum()
        words.view(torch.int32).bitwise_not_() if changes else words.sum()

    def reset() -> None:
        weight.copy_(source if changes else expected)

    calls: dict[str, Call] = {"floor": floor}
    if bench.runs:
        with ops.use_backend(bench.backend):
            ops.apply_mask_(weights, masks)
            assert torch.equal(weight, expected)
            calls[bench.backend] = lambda: ops.apply_mask_(weights, masks)
    if bench.peers and peers:
        factors = [(part != 0).to(dtype) for part in expected.split(size)]
        calls["torch._foreach_mul_ by masks of floats"] = lambda: torch._foreach_mul_(weights, factors)
    times = bench.race(calls, reset, around=bench.forced)
    ideal = times.pop("floor")
    moved = (2 if changes else 1) * source.nbytes + mask.nbytes
    about = {"op": "apply_mask_", "dtype": name_of(dtype), "entries": source.numel(), "bytes": moved}
    about |= {"floor ms": ideal, "floor GB/s": moved / ideal / 1e6}
    for name, ms in times.items():
        yield {"provider": name, **about, "ms": ms, "x floor": ms / ideal}


# --- the probe --------------------------------------------------------------------------------------------


def probe_rows(bench: Bench, name: str) -> Iterator[Row]:
    model = (resnet50(8 if bench.dry else 1) if name == "ResNet-50" else ViT(64, 1) if bench.dry else ViT()).eval()
    side, batch = (32, 1) if bench.dry else (224, 64)
    x = torch.randn(batch, 3, side, side, device=bench.device, dtype=torch.bfloat16)
    model.to(bench.device, torch.bfloat16)
    if name == "ResNet-50":
        model.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    if not bench.runs:
        return

    def forward() -> None:
        with torch.inference_mode():
            model(x)

    probe = EntropyProbe(model)

    @contextmanager
    def around(name: str) -> Iterator[None]:
        with probe if name in ("first", bench.backend) else nullcontext():
            # The first pass of a `with` is watched call by call, and from the fourth on counting repeats what it knows.
            for _ in range(0 if name == "first" else 4):
                forward()
            yield

    with ops.use_backend(bench.backend):
        with probe:
            forward()
        counted = sum(int(layer.counts.sum()) for layer in probe.report().layers)
        words = torch.zeros(counted // 2, device=bench.device)  # as many bytes
        calls = {"plain": forward, "first": forward, bench.backend: forward, "reads": words.sum}
        times = bench.race(calls, around=around)
    plain, ms, reads = times["plain"], times[bench.backend], times["reads"]
    about = {"op": "probe", "dtype": "bfloat16", "bytes": words.nbytes, "plain ms": plain, "first ms": times["first"]}
    about |= {"ms": ms, "reads ms": reads}
    about |= {"overhead %": 100 * (ms / plain - 1), "above reads %": 100 * ((ms - reads) / plain - 1)}
    yield {"provider": bench.backend, **about}


# --- all --------------------------------------------------------------------------------------------------


def measure(bench: Bench) -> None:
    """Most important cases first: what comes after the time is up is named in the output."""
    scale = 1 << 14 if bench.dry else 1  # divides every size

    def signs(megabytes: int, dtype: torch.dtype, layout: str) -> None:
        size = megabytes * MB // scale
        name = f"sign_histogram {size / MB:g} MB {name_of(dtype)} {layout}"
        bench.case(name, lambda: sign_rows(bench, size, dtype, layout))

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
        name = f"masked_topk_ {entries / 1e6:g}M {name_of(dtype)} k={share:g} {data} in {tensors}"
        bench.case(name, lambda: topk_rows(bench, entries, dtype, share, data, tensors=tensors, peers=peers))

    def applied(
        entries: int, dtype: torch.dtype, *, changes: bool = False, tensors: int = 1, peers: bool = False
    ) -> None:
        entries = max(64, entries // scale)
        what = "all masked ones change" if changes else "nothing changes"
        name = f"apply_mask_ {entries / 1e6:g}M {name_of(dtype)} {what} in {tensors}"
        bench.case(name, lambda: apply_rows(bench, entries, dtype, tensors=tensors, changes=changes, peers=peers))

    half, single = torch.bfloat16, torch.float32
    for layout in LAYOUTS:
        signs(256, half, layout)
    topk(1 << 30, half)
    topk(1 << 30, single)
    topk(1 << 24, half, peers=True)
    topk(1 << 26, half, tensors=160)
    applied(1 << 28, half)
    applied(1 << 28, half, changes=True, peers=True)
    samples = 2 if bench.dry else 64
    bench.case(
        f"sign_histogram of the 49 maps of a ResNet-50, {samples} images", lambda: list_rows(bench, samples, half)
    )
    for layout in ("last, 768", "first, 56x56"):
        name = f"sign_hashes {256 * MB // scale / MB:g} MB bfloat16 {layout}"
        bench.case(name, lambda layout=layout: hash_rows(bench, 256 * MB // scale, half, layout))
    for name in ("ResNet-50", "ViT-B"):
        bench.case(f"probe {name}", lambda name=name: probe_rows(bench, name))
    for layout in LAYOUTS:
        signs(256, single, layout)
    for megabytes in (1, 16, 64, 1024, 8192):
        signs(megabytes, half, "first, 56x56")
        signs(megabytes, half, "last, 768")
    for dtype in (half, single):
        for entries in (1 << 19, 1 << 22, 1 << 26, 1 << 28):
            topk(entries, dtype, peers=dtype == half and entries == 1 << 26)
        for share in (0.01, 0.1, 0.9):
            topk(1 << 26, dtype, share)
        for data in ("equal", "two values", "sorted"):
            topk(1 << 26, dtype, data=data)
        applied(1 << 30, dtype, changes=dtype == single)
        applied(1 << 26, dtype, tensors=160)
    topk(1 << 26, torch.float16)
    signs(256, torch.float16, "last, 768")
    topk(1 << 32, half)


def machine(dry: bool) -> dict[str, object]:
    about: dict[str, object] = {
        "device": "dry run: the times mean nothing" if dry else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
    }
    if not dry:
        properties = torch.cuda.get_device_properties(0)
        about |= {"multiprocessors": properties.multi_processor_count, "L2 MB": properties.L2_cache_size / MB}
    return about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backend", choices=("cuda", "triton"), required=True)
    parser.add_argument("--peers", action="store_true", help="also what torch has")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--seconds", type=float, default=150)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    status = ops.backends()[arguments.backend]
    results = Results(arguments.out, arguments.backend, {**machine(arguments.dry), arguments.backend: status.detail})
    bench = Bench(arguments.dry, arguments.seconds, arguments.backend, arguments.peers, results)
    if not status.available:
        results.fail(f"the backend: {status.detail}")
    try:
        measure(bench)
    finally:
        picture(results.rows, arguments.out / "gpu.png")
        print(f"\n{results.text()}")
    raise SystemExit(any(results.failed.values()))


if __name__ == "__main__":
    main()
