"""The IDX format of MNIST and Fashion-MNIST, gzipped or not, read with every byte accounted for.

Layout: two zero bytes, a type code (8 = unsigned byte), the number of dimensions, each dimension as a
big-endian int32, then the data in row-major order.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo.data.split import DataSet, from_arrays, stratified

FASHION_MNIST_DIR = "/usr/share/datasets/fashion-mnist"
HOW_TO_GET = "Fashion-MNIST comes with Debian and Ubuntu: apt-get install dataset-fashion-mnist"
UNSIGNED_BYTE = 8
VALIDATION_FRACTION = 1 / 12  # 5,000 of Fashion-MNIST's 60,000


def read_idx(path: Path) -> np.ndarray:
    """Read one IDX file of unsigned bytes.

    Returns:
        uint8 array of the shape in the header.

    Raises:
        LayerCollapseError: not an IDX file, cut short, or longer than its header says.
    """
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise LayerCollapseError(f"data: cannot read {path}: {error}; get the file again") from error
    if len(raw) < 4 or raw[0] or raw[1] or raw[2] != UNSIGNED_BYTE:
        raise LayerCollapseError(
            f"data: expected an IDX file of unsigned bytes at {path}, got a file starting with {raw[:4]!r}"
        )
    header = 4 + 4 * raw[3]
    shape = tuple(int(size) for size in np.frombuffer(raw[4:header].ljust(header - 4, b"\0"), ">u4"))
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(raw) != expected:
        raise LayerCollapseError(
            f"data: expected {expected} bytes in {path} for shape {shape}, got {len(raw)}; get the file again"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _find(folder: Path, stem: str, dimensions: int) -> Path:
    names = [f"{stem}{separator}idx{dimensions}-ubyte{suffix}" for separator in "-." for suffix in (".gz", "")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise LayerCollapseError(f"data: expected {names[0]} in {folder}, got no such file. {HOW_TO_GET}")


def _read_pair(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    images_path, labels_path = _find(folder, f"{prefix}-images", 3), _find(folder, f"{prefix}-labels", 1)
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or len(labels) == 0:
        raise LayerCollapseError(
            f"data: expected as many images (N, H, W) as labels (N,), "
            f"got {images.shape} in {images_path} and {labels.shape} in {labels_path}"
        )
    return images, labels


def load_idx(folder: Path, *, name: str | None = None, validation_share: float = VALIDATION_FRACTION) -> DataSet:
    """Load a folder of four IDX files; the t10k files are the test split, a share of the train files validation.

    The labels that occur in the train files are the classes, in order: labels 1 to 10 make ten of them.

    Raises:
        LayerCollapseError: the folder or a file is missing or damaged; the message says how to get it.
    """
    if not folder.is_dir():
        raise LayerCollapseError(f"data: expected a folder of IDX files, got {folder}. {HOW_TO_GET}")
    images, labels = _read_pair(folder, "train")
    test_images, test_labels = _read_pair(folder, "t10k")
    if not 0 < validation_share < 1:
        raise LayerCollapseError(f"validation_share: expected more than 0 and less than 1, got {validation_share:g}")
    validation, train = stratified(labels, (validation_share, 1 - validation_share))
    if len(train) == 0 or len(validation) == 0:
        raise LayerCollapseError(
            f"data: expected at least 6 training images per class in {folder}, got {len(labels)} in all"
        )
    classes = np.unique(labels)
    if not np.isin(test_labels, classes).all() or test_images.shape[1:] != images.shape[1:]:
        raise LayerCollapseError(
            f"data: expected the train and t10k files in {folder} to match, got images of "
            f"{images.shape[1:]} and {test_images.shape[1:]}, labels {classes.tolist()} and "
            f"{np.unique(test_labels).tolist()}"
        )
    named = () if np.array_equal(classes, np.arange(len(classes))) else tuple(classes.tolist())
    labels, test_labels = np.searchsorted(classes, labels), np.searchsorted(classes, test_labels)
    return from_arrays(
        name or folder.resolve().name,
        (images[train], labels[train]),
        (images[validation], labels[validation]),
        (test_images, test_labels),
        classes=named,
    )
