"""The inputs and providers that `layercollapse.ops.bench` times: ours, what users have today, and the floor.

A case makes its inputs once. All weights of a case are parts of one buffer, so that the floor (a read, or a read and
a write, of that buffer) touches exactly the same bytes in one call however many tensors there are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import prune

from layercollapse import ops

OURS = "layercollapse"
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass
class Case:
    """Inputs of one op, and everything needed to time providers on them.

    Attributes:
        op, shape, dtype, layout: what is timed, in words.
        entries: how many values there are.
        bytes: what must be read and written at least.
        reset: makes the inputs as they were before a call (not timed).
        floor: touches the same bytes and nothing else.
        providers: name to a call; it returns an answer, or a function that reads one off (not timed).
        agrees: raises if an answer is wrong.
    """

    op: str
    shape: str
    dtype: str
    layout: str
    entries: int
    bytes: int
    reset: Callable[[], None]
    floor: Callable[[], object]
    providers: dict[str, Callable[[], Any]]
    agrees: Callable[[Any], None]


def sign_histogram_case(shape: Sequence[int], dtype: torch.dtype, layout: str) -> Case:
    """Build a case of (N, C, L) values; ``layout`` is "channels_first", or "channels_last" with C inside: (N, L, C)."""
    samples, channels, length = shape
    flat, x = _activations(shape, dtype, layout)
    # The floor of 16-bit values is a sum of as many bytes: torch's own bfloat16 sum is slower than memory.
    words = _words(flat)

    def eager() -> Tensor:
        return torch.stack([(x < 0).sum((0, 2)), (x == 0).sum((0, 2)), (x > 0).sum((0, 2))], 1)

    def authors() -> Tensor:  # the share of the positive among the signs, by masks in float, as EGP describes it
        on, off = torch.where(x > 0, 1.0, 0.0), torch.where(x < 0, 1.0, 0.0)
        positive, negative = on.sum((0, 2)), off.sum((0, 2))
        return torch.stack([negative, samples * length - positive - negative, positive], 1)

    @cache
    def expected() -> Tensor:
        with ops.use_backend("reference"):
            return ops.sign_histogram(x)[:, :3]

    def agrees(answer: Tensor) -> None:
        difference = (answer[:, :3].double() - expected()).abs().max().item()
        if difference > 1e-6 * x.numel():  # sums of floats are not exact
            raise AssertionError(f"sign_histogram: counts differ by {difference}")

    return Case(
        op="sign_histogram",
        shape=str(tuple(x.shape if layout == "channels_first" else (samples, length, channels))),
        dtype=_name(dtype),
        layout=layout,
        entries=x.numel(),
        bytes=x.numel() * x.element_size(),  # every byte read once
        reset=lambda: None,
        floor=words.sum,
        providers={OURS: lambda: ops.sign_histogram(x), "torch, eager": eager, "authors' formula": authors},
        agrees=agrees,
    )


def sign_hashes_case(shape: Sequence[int], dtype: torch.dtype, layout: str) -> Case:
    """Build a case of (N, C, L) values, N · L rows of signs; ``layout`` as in `sign_histogram_case`."""
    samples, channels, length = shape
    flat, x = _activations(shape, dtype, layout)
    words, out = _words(flat), torch.empty(samples * length, dtype=torch.int64)

    def floor() -> None:
        words.sum()
        out.zero_()

    powers = 2.0 ** torch.arange(24)

    def packed() -> Tensor:  # the signs of 24 channels a number: what is exact in float32
        parts = (x > 0).float().movedim(1, -1).split(24, dim=-1)
        return torch.stack([part @ powers[: part.shape[-1]] for part in parts], -1)

    @cache
    def expected() -> tuple[Tensor, Tensor]:
        with ops.use_backend("reference"):
            return ops.sign_hashes(x), packed()

    def agrees(answer: Tensor) -> None:
        if not any(answer.shape == right.shape and torch.equal(answer, right) for right in expected()):
            raise AssertionError("sign_hashes: hashes differ")

    return Case(
        op="sign_hashes",
        shape=str(tuple(x.shape if layout == "channels_first" else (samples, length, channels))),
        dtype=_name(dtype),
        layout=layout,
        entries=x.numel(),
        bytes=x.numel() * x.element_size() + out.numel() * 8,  # every byte read once, 8 bytes written per row
        reset=lambda: None,
        floor=floor,
        providers={OURS: lambda: ops.sign_hashes(x), "torch, packed signs only": packed},
        agrees=agrees,
    )


def masked_topk_case(
    shapes: Sequence[Sequence[int]],
    dtype: torch.dtype,
    layout: str = "contiguous",
    *,
    scope: Literal["layer", "global"] = "layer",
    values: Literal["normal", "two"] = "normal",
    peers: bool = True,
) -> Case:
    """Build a case: half of every weight, or of all together, goes.

    Args:
        shapes: of the weights; four dimensions for "channels_last".
        dtype: of the weights.
        layout: "contiguous" or "channels_last".
        scope: what is ranked together.
        values: "two": of binarized weights, half of them 1 and half 2 in magnitude, where a bracket cannot help.
        peers: also time what users have today (up to a thousand times slower).
    """
    generator = torch.Generator().manual_seed(0)
    sizes = [math.prod(shape) for shape in shapes]
    original = torch.randn(sum(sizes), generator=generator).to(dtype)
    if values == "two":
        original = torch.where(original.abs() < 0.6745, original.sign(), 2 * original.sign())
    flat = original.clone()
    weights = [_arrange(part, shape, layout) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
    masks = [torch.full(((size + 7) // 8,), 255, dtype=torch.uint8) for size in sizes]
    # What is ranked together: magnitudes need no order, so the parts of the buffer do for the selections.
    groups = list(flat.split(sizes if scope == "layer" else [sum(sizes)]))
    k = [group.numel() // 2 for group in groups]
    words = _words(flat)

    def reset() -> None:
        flat.copy_(original)
        for mask in masks:
            mask.fill_(255)

    def floor() -> None:
        words.sum()
        words.mul_(1)

    def ours() -> Tensor:
        return ops.masked_topk_(weights, masks, k if scope == "layer" else k[0], scope=scope)

    def modules() -> list[torch.nn.Module]:
        inputs = []
        for weight in weights:
            inputs.append(torch.nn.Module())
            inputs[-1].register_parameter("weight", torch.nn.Parameter(weight))
        return inputs

    def cleared(pruned: list[torch.nn.Module]) -> Tensor:
        """Return the largest magnitude that prune's masks clear, per group."""
        gone = [_flat(m.get_parameter("weight_orig"))[_flat(m.get_buffer("weight_mask")) == 0].abs() for m in pruned]
        if scope == "global":
            gone = [torch.cat(gone)]
        if [part.numel() for part in gone] != k:
            raise AssertionError("prune: expected exactly k zeros in the masks")
        return torch.stack([part.max() for part in gone]).detach()

    def l1_unstructured() -> Callable[[], Tensor]:
        pruned = modules()
        for module, amount in zip(pruned, k, strict=True):
            prune.l1_unstructured(module, "weight", amount)
        return lambda: cleared(pruned)

    def global_unstructured() -> Callable[[], Tensor]:
        pruned = modules()
        prune.global_unstructured([(m, "weight") for m in pruned], prune.L1Unstructured, amount=k[0])
        return lambda: cleared(pruned)

    def each(select: Callable[[Tensor, int], Any]) -> Callable[[], list[Any]]:
        return lambda: [select(group.abs(), amount) for group, amount in zip(groups, k, strict=True)]

    def partition(magnitudes: Tensor, amount: int) -> float:
        return float(np.partition(magnitudes.float().numpy(), amount - 1)[amount - 1])

    @cache
    def expected() -> Tensor:
        whole = original.split([group.numel() for group in groups])
        return torch.tensor([partition(part.abs(), amount) for part, amount in zip(whole, k, strict=True)])

    def agrees(answer: Any) -> None:
        thresholds = torch.as_tensor([float(entry) for entry in answer])
        if not torch.equal(thresholds, expected()):
            raise AssertionError(f"masked_topk_: thresholds differ: {thresholds} and {expected()}")

    providers: dict[str, Callable[[], Any]] = {OURS: ours}
    if peers:
        if scope == "global":
            providers["prune.global_unstructured"] = global_unstructured
        elif layout == "contiguous":  # torch refuses others: it needs a view of one dimension
            providers["prune.l1_unstructured"] = l1_unstructured
        providers["np.partition, select only"] = each(partition)
        providers["torch.kthvalue, select only"] = each(lambda m, n: m.kthvalue(n).values)
        providers["torch.topk, select only"] = each(lambda m, n: m.topk(n, largest=False).values[-1])
    return Case(
        op="masked_topk_",
        shape=_shape_of(shapes),
        dtype=_name(dtype),
        layout=layout + ", global k" * (scope == "global") + ", two values" * (values == "two"),
        entries=sum(sizes),
        bytes=2 * flat.numel() * flat.element_size() + flat.numel() // 8,  # read once, written once, and the mask
        reset=reset,
        floor=floor,
        providers=providers,
        agrees=agrees,
    )


def apply_mask_case(
    shapes: Sequence[Sequence[int]],
    dtype: torch.dtype,
    layout: str = "contiguous",
    *,
    changes: bool = False,
    peers: bool = True,
) -> Case:
    """Build a case: half of the keep-bits are set, at random.

    Args:
        shapes: of the weights; four dimensions for "channels_last".
        dtype: of the weights.
        layout: "contiguous" or "channels_last".
        changes: whether every masked weight has become nonzero, as by a step with momentum; else none has.
        peers: also time what users have today.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = [math.prod(shape) for shape in shapes]
    original = torch.randn(sum(sizes), generator=generator).to(dtype)
    packed = torch.randint(0, 256, (sum((size + 7) // 8 for size in sizes),), generator=generator, dtype=torch.uint8)
    masks = list(packed.split([(size + 7) // 8 for size in sizes]))
    kept = [ops.unpack_mask(mask, shape) for mask, shape in zip(masks, shapes, strict=True)]
    flat = original.clone()
    weights = [_arrange(part, shape, layout) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
    with ops.use_backend("reference"):
        ops.apply_mask_(weights, masks)
    masked = flat.clone()
    if changes:
        flat.copy_(original)
    words, mask_words = _words(flat), packed[: packed.numel() // 4 * 4].view(torch.float32)

    def reset() -> None:
        if changes:
            flat.copy_(original)

    def floor() -> None:
        mask_words.sum()
        words.mul_(1) if changes else words.sum()

    def agrees(_: Any) -> None:
        if not torch.equal(flat, masked):
            raise AssertionError("apply_mask_: weights differ")

    providers: dict[str, Callable[[], Any]] = {OURS: lambda: ops.apply_mask_(weights, masks)}
    if peers:
        factors = [keep.to(dtype).contiguous(memory_format=_FORMATS[layout]) for keep in kept]
        providers["masked_topk_ with k = 0"] = lambda: ops.masked_topk_(weights, masks, 0)
        providers["torch._foreach_mul_ by masks of floats"] = lambda: torch._foreach_mul_(weights, factors)
    return Case(
        op="apply_mask_",
        shape=_shape_of(shapes),
        dtype=_name(dtype),
        layout=layout + (", all masked ones change" if changes else ", nothing changes"),
        entries=sum(sizes),
        bytes=flat.numel() * flat.element_size() * (2 if changes else 1) + packed.numel(),
        reset=reset,
        floor=floor,
        providers=providers,
        agrees=agrees,
    )


def by_size(sizes: Sequence[int]) -> Iterator[Case]:
    """Yield cases of the ops with about ``sizes`` entries each: how the time grows."""
    for size in sizes:
        shape = _activation(size)
        for layout, dtype in itertools.product(("channels_first", "channels_last"), (torch.float32, torch.bfloat16)):
            yield sign_histogram_case(shape, dtype, layout)
            yield sign_hashes_case(shape, dtype, layout)
    for size in sizes:
        yield masked_topk_case([(size,)], torch.float32)
        yield masked_topk_case([(size,)], torch.bfloat16, peers=False)
        yield masked_topk_case([(max(1, size // 100),)] * 100, torch.float32)
        yield masked_topk_case([(max(1, size // 100),)] * 100, torch.float32, scope="global")
    for size in sizes:
        for dtype in (torch.float32, torch.bfloat16):
            yield apply_mask_case([(size,)], dtype)
        yield apply_mask_case([(max(1, size // 100),)] * 100, torch.float32)


def goals() -> Iterator[Case]:
    """Yield the cases that the project has set itself goals for, at their full sizes."""
    large, small = (64, 256, 56 * 56), (256, 2048, 7 * 7)
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    for shape, layout, dtype in itertools.product((large, small), ("channels_first", "channels_last"), dtypes):
        yield sign_histogram_case(shape, dtype, layout)
    # (N, T, C) of vision transformers: one that memory limits, and one that a cache of 32 MB holds, where the floor is
    # the speed of the cache.
    for tokens, dtype in itertools.product((1024, 197), dtypes):
        yield sign_histogram_case((64, 768, tokens), dtype, "channels_last")
    for shape, layout, dtype in itertools.product((large, small), ("channels_first", "channels_last"), dtypes[:2]):
        yield sign_hashes_case(shape, dtype, layout)
    weight = [(25_000_000,)]
    yield masked_topk_case(weight, torch.float32)
    for dtype in dtypes[1:]:
        yield masked_topk_case(weight, dtype, peers=False)
    yield masked_topk_case(weight, torch.float32, values="two", peers=False)
    yield masked_topk_case([(43_402, 64, 3, 3)], torch.float32, "channels_last", peers=False)
    yield masked_topk_case([(250_000,)] * 100, torch.float32)
    yield masked_topk_case([(250_000,)] * 100, torch.float32, scope="global")
    # 100 tensors of 512 to 9 M weights, each 1.1043 times the last: 100 M in all.
    mixed = [(round(64 * 1.1043**i) * 8,) for i in range(100)]
    yield masked_topk_case(mixed, torch.float32, peers=False)
    yield masked_topk_case(mixed, torch.float32, scope="global", peers=False)
    yield masked_topk_case([(1000,)] * 1000, torch.float32)
    for dtype in dtypes:
        yield apply_mask_case(weight, dtype)
    yield apply_mask_case(weight, torch.float32, changes=True)
    yield apply_mask_case([(43_402, 64, 3, 3)], torch.float32, "channels_last")
    yield apply_mask_case([(250_000,)] * 100, torch.float32)
    yield apply_mask_case([(1000,)] * 1000, torch.float32)


def _activation(size: int) -> tuple[int, int, int]:
    channels = 256 if size >= 100_000 else 4
    length = 3136 if size >= 10_000_000 else max(1, size // channels // (32 if size >= 100_000 else 1))
    return max(1, size // channels // length), channels, length


def _activations(shape: Sequence[int], dtype: torch.dtype, layout: str) -> tuple[Tensor, Tensor]:
    """Return a buffer, and it as (N, C, L) with C inside for "channels_last"."""
    samples, channels, length = shape
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(samples * channels * length, generator=generator).to(dtype)
    if layout == "channels_last":
        return flat, flat.view(samples, length, channels).transpose(1, 2)
    return flat, flat.view(samples, channels, length)


def _arrange(part: Tensor, shape: Sequence[int], layout: str) -> Tensor:
    if layout != "channels_last":
        return part.view(tuple(shape))
    n, c, *spatial = shape
    return part.view(n, *spatial, c).movedim(-1, 1)


def _shape_of(shapes: Sequence[Sequence[int]]) -> str:
    same = len({tuple(shape) for shape in shapes}) == 1
    what = str(tuple(shapes[0])) if same else f"mixed, {sum(map(math.prod, shapes)):,} in all"
    return what if len(shapes) == 1 else f"{len(shapes)} × {what}"


def _words(flat: Tensor) -> Tensor:
    """Return the same bytes as float32 (but for an odd last one)."""
    return flat[: flat.numel() // 2 * 2].view(torch.float32)


def _flat(weight: Tensor) -> Tensor:
    return weight.detach().reshape(-1)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
