"""Files that are either whole or not there: write beside the target, then rename."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from layercollapse.errors import LayerCollapseError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it replaces `path`, on failure it is removed."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 would hide the result from the user's group
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinity are bugs of ours, not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, argument: str) -> Any:
    """Read JSON.

    Raises:
        LayerCollapseError: no such file, or not JSON; names `argument`.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LayerCollapseError(f"{argument}: expected a JSON file at {path}, got: {error}") from error


def writable_folder(path: str | Path, argument: str = "out") -> Path:
    """Make the folder if it is missing, and prove by writing a file that it can be written.

    Raises:
        LayerCollapseError: names `argument` and what the system said.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise LayerCollapseError(
            f"{argument}: expected a folder that can be written, got {folder} ({error.strerror})"
        ) from error
    return folder


def free_folder(name: str) -> Path:
    """`runs/name`, or the first of `runs/name-2`, `runs/name-3`, ... that is not there yet."""
    first = Path("runs") / name
    others = (first.with_name(f"{name}-{number}") for number in count(2))
    return first if not first.exists() else next(folder for folder in others if not folder.exists())
