from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

openmp: bool
VECTOR: int
topk_columns: dict[str, int]

def isa() -> str: ...
def use_isa(name: str) -> None: ...
def sign_histogram(
    xs: Sequence[int],
    dtypes: Sequence[int],
    sizes: Sequence[Sequence[int]],
    strides: Sequence[Sequence[int]],
    channel_dims: Sequence[int],
    uppers: Sequence[float],
    outs: Sequence[int],
    threads: int,
) -> None: ...
def sign_hashes(
    x: int,
    dtype: int,
    sizes: Sequence[int],
    strides: Sequence[int],
    channel_dim: int,
    out: int,
    threads: int,
) -> None: ...
def masked_topk(
    values: Sequence[int],
    keep: Sequence[int],
    dtypes: Sequence[int],
    sizes: Sequence[int],
    layouts: Sequence[tuple[int, Sequence[int], Sequence[int]]],
    k: Sequence[int],
    global_: bool,
    thresholds: int,
    threads: int,
) -> tuple[int, int, int]: ...
def topk_count(
    values: Sequence[int],
    keep: Sequence[int],
    dtypes: Sequence[int],
    sizes: Sequence[int],
    layouts: Sequence[tuple[int, Sequence[int], Sequence[int]]],
    lo: int,
    hi: int,
    counts: int,
    threads: int,
) -> None: ...
def apply_mask(
    values: Sequence[int],
    keep: Sequence[int],
    dtypes: Sequence[int],
    sizes: Sequence[int],
    layouts: Sequence[tuple[int, Sequence[int], Sequence[int]]],
    threads: int,
) -> None: ...
def mask_table(
    tile: int,
    values: Sequence[int],
    masks: Sequence[int],
    dtypes: Sequence[int],
    shapes: Sequence[Sequence[int]],
    strides: Sequence[Sequence[int]],
) -> tuple[list[int], int, int]: ...

class SignLimits:
    def __init__(self, block: int = ..., unroll: int = ..., long_run: int = ..., largest: int = ...) -> None: ...
    @property
    def block(self) -> int: ...
    @property
    def unroll(self) -> int: ...
    @property
    def long_run(self) -> int: ...
    @property
    def largest(self) -> int: ...

class _SignPart:
    start: int
    strips: int
    chunks: int
    most: int

class Columns(_SignPart):
    width: int
    run: int
    cols: int
    outer: tuple[int, int]
    inner: tuple[int, int]

class Runs(_SignPart):
    width: int
    channel_stride: int
    outer: tuple[int, int]

class Strided(_SignPart):
    channel_stride: int
    cols: int
    tile: int
    dims: list[tuple[int, int]]

def sign_plan(
    sizes: Sequence[int], strides: Sequence[int], channel_dim: int, width: int, address: int, limits: SignLimits
) -> tuple[list[Columns | Runs | Strided], int]: ...
def block_count(units: int, resident: int, least: int) -> int: ...
def magnitude_at_least(dtype: int, bound: float) -> int: ...

class TopkPlan:
    def __init__(
        self,
        values: Sequence[int],
        masks: Sequence[int],
        dtypes: Sequence[int],
        sizes: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        global_: bool,
        segments: int,
        shortest: int,
        sample: int,
        lists: bool,
        kept: bool,
        tails: bool,
    ) -> None: ...
    @property
    def table(self) -> NDArray[np.int64]: ...
    @property
    def segments(self) -> int: ...
    @property
    def groups(self) -> int: ...
    @property
    def dims(self) -> int: ...
    @property
    def parts(self) -> int: ...
    @property
    def most_dims(self) -> int: ...
    @property
    def classes(self) -> list[tuple[int, bool, int, int]]: ...
    @property
    def scratch(self) -> list[int]: ...
    def ranks(self, k: Sequence[int]) -> NDArray[np.int64]: ...
    def rounds(self, k: Sequence[int]) -> int: ...
    def outcome(self, k: Sequence[int], head: Sequence[int]) -> tuple[int, int, int]: ...

def hash_rows(sizes: Sequence[int], strides: Sequence[int], channel_dim: int) -> tuple[list[int], list[int]]: ...
