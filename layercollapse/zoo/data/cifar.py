"""CIFAR-10 as its "python version" has it: pickled batches, of which nothing but arrays, lists and texts is read.

The files are pickles, and unpickling runs whatever a file says. So they are read by an unpickler that knows four names,
the ones that NumPy's arrays are pickled with, and refuses a file that has any other.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo.data.split import DataSet, from_arrays, stratified

FOLDER = "cifar-10-batches-py"  # in the archive
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST, NAMES = "test_batch", "batches.meta"
SHAPE = (3, 32, 32)
VALIDATION_SHARE = 0.1


def _reconstruct(kind: type, shape: tuple, code: bytes) -> np.ndarray:
    """An empty array, which its state is put into then; no other class is made so."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError(f"an array of class {kind!r}")
    return np.empty(shape, np.uint8)


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as Python 3 writes them for Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes as {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}


class Unpickler(pickle.Unpickler):
    """Reads arrays, and what has no class: numbers, texts, bytes, lists, dicts."""

    def find_class(self, module: str, name: str) -> Any:
        """One of the allowed names.

        Raises:
            pickle.UnpicklingError: it is another.
        """
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}, which is not read")
        return _ALLOWED[module, name]


def read_batch(path: Path) -> dict[str, Any]:
    """The dict of a file, with texts as keys.

    Raises:
        LayerCollapseError: it is missing, damaged, or asks for more than arrays.
    """
    try:
        found = Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in found.items()}
    except OSError as error:
        raise LayerCollapseError(f"data: expected a batch of CIFAR-10 at {path}, got: {error.strerror}") from error
    except Exception as error:  # a pickle that is not one can raise anything
        raise LayerCollapseError(f"data: expected a batch of CIFAR-10 in {path}, got: {error}") from error


def load_cifar10(folder: Path, *, validation_share: float = VALIDATION_SHARE) -> DataSet:
    """The five training batches and the test batch; the validation split is a share of the training images.

    Args:
        folder: `cifar-10-batches-py`, or the one that it was unpacked in.
        validation_share: of every class.

    Raises:
        LayerCollapseError: a file is missing or is something else.
    """
    folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    if not folder.is_dir():
        raise LayerCollapseError(f"data: expected a folder with {TRAIN[0]} to {TEST}, got {folder}")
    if not 0 < validation_share < 1:
        raise LayerCollapseError(f"validation_share: expected more than 0 and less than 1, got {validation_share:g}")
    batches = [_images(folder / name) for name in TRAIN]
    images, labels = (np.concatenate([batch[part] for batch in batches]) for part in (0, 1))
    validation, train = stratified(labels, (validation_share, 1 - validation_share))
    if not len(validation) or not len(train):
        raise LayerCollapseError(f"validation_share: expected images on both sides, got {validation_share:g}")
    names: tuple[str, ...] = ()
    if (folder / NAMES).is_file():
        names = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in read_batch(folder / NAMES)["label_names"])
    test = _images(folder / TEST)
    parts = [(images[i], labels[i]) for i in (train, validation)]
    return from_arrays("cifar10", parts[0], parts[1], test, classes=names)


def _images(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64 of a batch."""
    batch = read_batch(path)
    data: Any = batch.get("data")
    labels = batch.get("labels")
    good = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and len(data)
    if not good or data.shape[1] != np.prod(SHAPE) or not isinstance(labels, list) or len(labels) != len(data):
        got = getattr(data, "shape", type(data).__name__)
        raise LayerCollapseError(
            f"data: expected data (N, {np.prod(SHAPE)}) of bytes and a list of N labels in {path}, got {got}"
        )
    return data.reshape(-1, *SHAPE), np.asarray(labels, np.int64)
