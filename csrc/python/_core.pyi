from collections.abc import Sequence

openmp: bool

def isa() -> str: ...
def use_isa(name: str) -> None: ...
def sign_histogram(
    x: int,
    dtype: int,
    sizes: Sequence[int],
    strides: Sequence[int],
    channel_dim: int,
    upper: float,
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
    widths: Sequence[int],
    shapes: Sequence[Sequence[int]],
    strides: Sequence[Sequence[int]],
) -> tuple[list[int], int, int]: ...
