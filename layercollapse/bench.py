"""Times the ops against what users have today and against the floor: the time to touch the same bytes once.

>>> rows = main(sizes=[10_000], repeats=1, providers=["layercollapse"])
>>> rows[0].op, rows[0].provider, rows[0].shape
('sign_histogram', 'layercollapse', '(1, 4, 2500)')

Every provider's answer is compared with the reference's before it is timed. A provider and the floor are timed
alternately in one process, so that a busy machine slows both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import prune

from layercollapse import ops
from layercollapse.errors import LayerCollapseError


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        op, provider, shape, dtype, layout: what was timed.
        ms: median time of a call.
        gb_per_s: bytes that the floor touches (`Case.bytes`) per second of ``ms``.
        floor_ms: median time of the floor, measured alternately.
        ratio: ``ms / floor_ms``.
    """

    op: str
    provider: str
    shape: str
    dtype: str
    layout: str
    ms: float
    gb_per_s: float
    floor_ms: float
    ratio: float


@dataclass
class Case:
    """Inputs of one op, and everything needed to time providers on them.

    Attributes:
        bytes: what must be read and written at least.
        reset: makes the inputs as they were before a call (not timed).
        floor: touches the same bytes and nothing else.
        providers: name to a call that returns an answer.
        agrees: raises if an answer is wrong.
    """

    op: str
    shape: str
    dtype: str
    layout: str
    bytes: int
    reset: Callable[[], None]
    floor: Callable[[], object]
    providers: dict[str, Callable[[], Any]]
    agrees: Callable[[Any], None]


def sign_histogram_case(shape: Sequence[int], dtype: torch.dtype, layout: str) -> Case:
    """Build a case: ``layout`` is "channels_first" (N, C, L), "channels_last" (the same, C inside) or "flat"."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype)
    if layout == "channels_last":
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    # The floor of 16-bit values is a sum of as many bytes: torch's own bfloat16 sum is slower than memory.
    words = (x if layout != "channels_last" else x.transpose(1, 2)).reshape(-1)
    words = words[: words.numel() // 2 * 2].view(torch.float32)

    def eager() -> Tensor:
        return torch.stack([(x < 0).sum((0, 2)), (x == 0).sum((0, 2)), (x > 0).sum((0, 2))], 1)

    def authors() -> Tensor:  # the share of the positive among the signs, by masks in float, as EGP describes it
        on, off = torch.where(x > 0, 1.0, 0.0), torch.where(x < 0, 1.0, 0.0)
        return torch.stack(
            [off.sum((0, 2)), x.shape[0] * x.shape[2] - on.sum((0, 2)) - off.sum((0, 2)), on.sum((0, 2))], 1
        )

    with ops.use_backend("reference"):
        expected = ops.sign_histogram(x)[:, :3]

    def agrees(answer: Tensor) -> None:
        difference = (answer[:, :3].double() - expected).abs().max().item()
        if difference > 1e-6 * x.numel():  # sums of floats are not exact
            raise AssertionError(f"counts differ by {difference}")

    return Case(
        "sign_histogram",
        str(tuple(shape)),
        _name(dtype),
        layout,
        x.numel() * x.element_size(),  # every byte read once
        lambda: None,
        words.sum,
        {"layercollapse": lambda: ops.sign_histogram(x), "torch, eager": eager, "authors' formula": authors},
        agrees,
    )


def masked_topk_case(shapes: Sequence[Sequence[int]], dtype: torch.dtype, layout: str) -> Case:
    """Build a case: half of every weight goes; ``layout`` is "contiguous" or "channels_last" (4 dimensions)."""
    generator = torch.Generator().manual_seed(0)
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    originals = [torch.randn(tuple(s), generator=generator).to(dtype).contiguous(memory_format=form) for s in shapes]
    weights = [original.clone() for original in originals]
    masks = [ops.pack_mask(torch.ones_like(weight, dtype=torch.bool)) for weight in weights]
    k = [weight.numel() // 2 for weight in weights]

    def reset() -> None:
        for weight, original, mask in zip(weights, originals, masks, strict=True):
            weight.copy_(original)
            mask.fill_(255)

    words = [
        weight.view(torch.float32) if weight.numel() % 2 == 0 and layout == "contiguous" else weight
        for weight in weights
    ]

    def floor() -> None:
        for word in words:
            word.sum()
        for word in words:
            word.mul_(1)

    def ours() -> Tensor:
        return ops.masked_topk_(weights, masks, k)

    def pruned(amounts: list[int]) -> Tensor:
        thresholds = []
        for weight, amount in zip(weights, amounts, strict=True):
            module = torch.nn.Module()
            module.register_parameter("weight", torch.nn.Parameter(weight))
            prune.l1_unstructured(module, "weight", amount)
            thresholds.append(weight[module.weight_mask == 0].abs().max())
        return torch.stack(thresholds)

    def kth(weight: Tensor, amount: int) -> Tensor:
        return weight.abs().flatten().kthvalue(amount).values

    def partition(weight: Tensor, amount: int) -> Tensor:
        return torch.tensor(np.partition(weight.abs().float().numpy().ravel(), amount - 1)[amount - 1])

    def top(weight: Tensor, amount: int) -> Tensor:
        return weight.abs().flatten().topk(amount, largest=False).values[-1]

    def each(select: Callable[[Tensor, int], Tensor]) -> Callable[[], Tensor]:
        return lambda: torch.stack([select(weight, amount) for weight, amount in zip(weights, k, strict=True)])

    def agrees(answer: Tensor) -> None:
        expected = torch.stack([kth(original, amount) for original, amount in zip(originals, k, strict=True)])
        if not torch.equal(answer.float(), expected.float()):
            raise AssertionError(f"thresholds differ: {answer} and {expected}")

    providers = {
        "layercollapse": ours,
        "prune.l1_unstructured": lambda: pruned(k),
        "np.partition, select only": each(partition),
        "torch.kthvalue, select only": each(kth),
        "torch.topk, select only": each(top),
    }
    if layout != "contiguous":
        del providers["prune.l1_unstructured"]  # torch refuses: it needs a view of one dimension
    numel = sum(weight.numel() for weight in weights)
    return Case(
        "masked_topk_",
        str(tuple(shapes[0])) if len(shapes) == 1 else f"{len(shapes)} × {tuple(shapes[0])}",
        _name(dtype),
        layout,
        2 * numel * weights[0].element_size() + numel // 8,  # read once, written once, and the mask
        reset,
        floor,
        providers,
        agrees,
    )


def cases(sizes: Sequence[int]) -> Iterator[Case]:
    """Yield the cases of both ops with about ``sizes`` entries each."""
    for size in sizes:
        channels = 256 if size >= 100_000 else 4
        spatial = 3136 if size >= 10_000_000 else max(1, size // channels // (32 if size >= 100_000 else 1))
        shape = (max(1, size // channels // spatial), channels, spatial)
        for layout in ("channels_first", "channels_last"):
            for dtype in (torch.float32, torch.bfloat16):
                yield sign_histogram_case(shape, dtype, layout)
    for size in sizes:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            yield masked_topk_case([(size,)], dtype, "contiguous")
        yield masked_topk_case([(max(1, size // 100),)] * 100, torch.float32, "contiguous")
        yield masked_topk_case([(max(1, size // 576), 64, 3, 3)], torch.float32, "channels_last")


def measure(case: Case, provider: str, repeats: int) -> Row:
    """Check a provider's answer, then time it and the floor alternately; slow providers fewer times."""
    case.reset()
    start = time.perf_counter()
    case.agrees(case.providers[provider]())
    repeats = max(1, min(repeats, int(5 / max(1e-9, time.perf_counter() - start))))
    times, floors = [], []
    for _ in range(repeats):
        case.reset()
        start = time.perf_counter()
        case.providers[provider]()
        times.append(time.perf_counter() - start)
        start = time.perf_counter()
        case.floor()
        floors.append(time.perf_counter() - start)
    ms, floor_ms = statistics.median(times) * 1e3, statistics.median(floors) * 1e3
    return Row(
        case.op, provider, case.shape, case.dtype, case.layout, ms, case.bytes / ms / 1e6, floor_ms, ms / floor_ms
    )


def main(
    sizes: Sequence[int] = (1_000_000, 10_000_000),
    *,
    repeats: int = 15,
    providers: Sequence[str] | None = None,
    progress: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Measure every case and provider.

    Args:
        sizes: entries of a case, about.
        repeats: calls per measurement; the median counts.
        providers: names to keep; all by default.
        progress: called with each row as soon as it is there.

    Returns:
        The rows, in the order measured.
    """
    if repeats < 1 or not sizes or min(sizes) < 1000:
        raise LayerCollapseError(f"sizes, repeats: expected at least 1000 and 1, got {list(sizes)} and {repeats}")
    rows = []
    for case in cases(sizes):
        for provider in case.providers:
            if providers is not None and provider not in providers:
                continue
            rows.append(measure(case, provider, repeats))
            if progress is not None:
                progress(rows[-1])
    return rows


def line(row: Row) -> str:
    """Return a row as a line of a table, ``HEADER`` above it."""
    return (
        f"{row.op:15} {row.provider:28} {row.shape:22} {row.dtype:9} {row.layout:15} "
        f"{row.ms:10.3f} {row.gb_per_s:8.2f} {row.ratio:9.2f}"
    )


HEADER = f"{'op':15} {'provider':28} {'shape':22} {'dtype':9} {'layout':15} {'ms':>10} {'GB/s':>8} {'x floor':>9}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
