"""Files that are either whole or not there: write beside the target, flush to the disk, then rename."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from layercollapse.errors import LayerCollapseError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = ".part-"  # what the names of unfinished files begin with


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it replaces `path`, on failure it is removed."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{_TEMPORARY}{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 would hide the result from the user's group
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk: else a crash of the machine may leave the new name empty."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder on Windows
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def clear(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder; no other process may write there."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def locked(folder: Path, argument: str = "out") -> Iterator[None]:
    """The block, in which no other process or thread of this machine is that locks the folder.

    The lock is on the folder itself: it leaves nothing behind, and goes with its process. Where the system has no such
    locks (Windows, some network file systems), there is none.

    Raises:
        LayerCollapseError: another is in it.
    """
    handle = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        try:
            if handle is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LayerCollapseError(
                f"{argument}: expected a folder that nothing else is writing, got {folder}, in which another run is; "
                "wait for its end, or choose another folder"
            ) from error
        except OSError:
            pass
        yield
    finally:
        if handle is not None:
            os.close(handle)


def temporary_folder(folder: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder in a folder, for as long as it is needed; `clear` removes one that was left."""
    return tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=folder)


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
