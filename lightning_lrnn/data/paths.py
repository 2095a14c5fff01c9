"""Files and folders of a user; what cannot be looked at or read is told, never left out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from lightning_lrnn.data.errors import DataError, why

__all__ = ["check_path", "existing", "files_below", "read_bytes", "refuse_changed", "stamp"]


def check_path(path: str | None, error: type[DataError] = DataError, what: str = "path") -> None:
    """Raises for what is no path, and the empty one, which would be the working directory."""
    if path is not None and not isinstance(path, str | os.PathLike):
        raise error(f"`{what}` must be a path, got {path!r}")
    if path is not None and not str(path).strip():
        raise error(f"`{what}` is empty: give a file or a folder")


def existing(path: str | Path, error: type[DataError] = DataError, what: str = "path") -> Path:
    """A path, given as the argument `what`, with the home directory in the place of "~".

    Raises:
        DataError: (or `error`) if nothing is there, or it cannot be looked at.
    """
    check_path(str(path), error, what)
    try:
        expanded = Path(path).expanduser()
        exists = expanded.exists()
    except (OSError, RuntimeError, ValueError) as problem:
        raise error(f"`{what}`: {path} cannot be looked at: {why(problem)}") from problem
    if not exists:
        raise error(f"`{what}`: there is no file or folder {str(path)!r}")
    if not (expanded.is_file() or expanded.is_dir()):
        raise error(f"`{what}`: {path} is neither a file nor a folder")
    return expanded


def files_below(folder: Path, error: type[DataError] = DataError) -> Iterator[Path]:
    """All files of a folder, at any depth, but for hidden ones and those in hidden folders.

    Raises:
        DataError: (or `error`) for a folder that cannot be listed.
    """

    def refuse(problem: OSError) -> NoReturn:
        raise error(f"the folder {problem.filename} cannot be read: {why(problem)}") from problem

    for where, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(where, name)
            if not name.startswith(".") and file.is_file():
                yield file


def read_bytes(file: Path, error: type[DataError] = DataError) -> bytes:
    """The content of a file.

    Raises:
        DataError: (or `error`) if it cannot be read.
    """
    try:
        return file.read_bytes()
    except (OSError, MemoryError) as problem:
        raise error(f"{file} cannot be read: {why(problem)}") from problem


def stamp(status: os.stat_result) -> tuple[int, int]:
    """What tells a file that was changed: its size and when it was written last."""
    return status.st_size, status.st_mtime_ns


def refuse_changed(file: Path, error: type[DataError] = DataError) -> NoReturn:
    """Raises an error for a file that is read in parts and is another than it was."""
    raise error(
        f"{file} has changed since it was looked at first: leave files as they are while they are "
        "read, and start again"
    )
