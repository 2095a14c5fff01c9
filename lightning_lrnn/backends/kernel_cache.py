"""Compiled kernels on disk: small files named by what they were compiled from.

Code that a GPU or a processor will run comes out of this folder, so nothing in it is taken on
trust: the folder and every entry must belong to the user and be writable by nobody else, and an
entry must carry the digest of its key and content. An entry appears whole or not at all (a
temporary file, renamed), so any number of processes may share the folder. What does not hold is
ignored, with one warning in a process; the kernel is then compiled and kept in memory only. Entries
are 5 to 100 kB and are never evicted: all variants of one version take a few MB.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import sys
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "cache_folder",
    "cache_size",
    "clear_cache",
    "key",
    "read",
    "write",
]

ENVIRONMENT_VARIABLE = "LIGHTNING_LRNN_CACHE"

_DIGEST_BYTES = hashlib.sha256().digest_size
_TEMPORARY = "unfinished-"
_OURS = re.compile(rf"[0-9a-f]{{{2 * _DIGEST_BYTES}}}\.(cubin|o)|{_TEMPORARY}\w+")

_LARGEST = 64 << 20
"""Bytes of an entry at most; a sparse file may claim any size."""

_warned = False


class _UntrustedError(Exception):
    """Why a folder or an entry is not used."""


def cache_folder() -> Path:
    """Where kernels are kept: the folder `kernels` in the project's per-user cache folder.

    That is $LIGHTNING_LRNN_CACHE if it is set; else `lightning_lrnn` in %LOCALAPPDATA% (Windows),
    ~/Library/Caches (macOS), or $XDG_CACHE_HOME or ~/.cache (elsewhere). The folder need not exist.

    Raises:
        RuntimeError: if the user has no home folder and no variable names another place.
    """
    if moved := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(moved).expanduser().absolute() / "kernels"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        base = Path(local) if local else Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        named = os.environ.get("XDG_CACHE_HOME", "")
        # The XDG specification asks to ignore a relative path.
        base = Path(named) if os.path.isabs(named) else Path.home() / ".cache"
    return base / "lightning_lrnn" / "kernels"


def key(parts: Iterable[bytes]) -> str:
    """Name of an entry: the sha256, in hex, of all parts in order."""
    digest = hashlib.sha256()
    for part in parts:
        # The length keeps ("ab", "c") and ("a", "bc") apart.
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def read(name: str, suffix: str = "cubin") -> bytes | None:
    """The content of an entry, or None if there is none that can be trusted."""
    try:
        folder = cache_folder()
        _check_folder(folder)
        with open(folder / f"{name}.{suffix}", "rb", opener=_open_without_links) as file:
            _check_entry(os.fstat(file.fileno()), file.name)
            digest, content = file.read(_DIGEST_BYTES), file.read(_LARGEST)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, _UntrustedError) as reason:
        _warn(reason)
        return None
    if digest != _digest(name, content):
        _warn(f"{folder / name}.{suffix} is corrupt")
        return None
    return content


def write(name: str, content: bytes, suffix: str = "cubin") -> None:
    """Keeps an entry, readable and writable by its owner only; replaces one that exists."""
    try:
        folder = cache_folder()
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        _check_folder(folder)
        descriptor, unfinished = tempfile.mkstemp(prefix=_TEMPORARY, dir=folder)  # mode 0600
        try:
            with open(descriptor, "wb") as file:
                file.write(_digest(name, content) + content)
            os.replace(unfinished, folder / f"{name}.{suffix}")
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(unfinished)
            raise
    except (OSError, RuntimeError, _UntrustedError) as reason:
        _warn(reason)


def clear_cache() -> tuple[int, int]:
    """Deletes every kernel kept on disk, and what interrupted processes left.

    Files of other names in the folder stay.

    Returns:
        The number of files deleted, and their size in bytes.

    Raises:
        OSError: if the folder or a file in it cannot be read or deleted.
    """
    files = size = 0
    for entry in _entries():
        # Another process may be clearing too.
        with contextlib.suppress(FileNotFoundError):
            entry_size = entry.stat(follow_symlinks=False).st_size
            os.unlink(entry.path)
            files, size = files + 1, size + entry_size
    return files, size


def cache_size() -> tuple[int, int]:
    """The number of files that `clear_cache` would delete, and their size in bytes.

    Raises:
        OSError: if the folder cannot be read.
    """
    sizes = []
    for entry in _entries():
        with contextlib.suppress(FileNotFoundError):
            sizes.append(entry.stat(follow_symlinks=False).st_size)
    return len(sizes), sum(sizes)


def _entries() -> list[os.DirEntry[str]]:
    folder = cache_folder()
    entries: Iterable[os.DirEntry[str]] = os.scandir(folder) if folder.is_dir() else ()
    return [entry for entry in entries if _OURS.fullmatch(entry.name)]


def _digest(name: str, content: bytes) -> bytes:
    # With the name, so that a renamed entry is not taken for another kernel.
    return hashlib.sha256(name.encode() + content).digest()


def _open_without_links(path: str, flags: int) -> int:
    # A FIFO that nobody writes to is opened, too, and found not to be a file.
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def _check_entry(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _UntrustedError(f"{path} is not a file")
    _check_owner(status, path)
    if status.st_size > _LARGEST:
        raise _UntrustedError(f"{path} is corrupt: it has {status.st_size} bytes")


def _check_folder(folder: Path) -> None:
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode):
        raise _UntrustedError(f"{folder} is not a folder")
    _check_owner(status, str(folder))


def _check_owner(status: os.stat_result, path: str) -> None:
    if sys.platform == "win32":
        return  # the user's own profile; owner and mode of `stat` say nothing there
    if status.st_uid != os.geteuid():
        raise _UntrustedError(f"{path} belongs to user {status.st_uid}, not to {os.geteuid()}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _UntrustedError(f"{path} can be written by others (chmod go-w makes it private)")


def _warn(reason: object) -> None:
    global _warned
    if _warned:
        return
    _warned = True
    warnings.warn(
        f"compiled kernels are not kept or not read on disk: {reason}. They are compiled anew in "
        f"each process; {ENVIRONMENT_VARIABLE} moves the folder",
        stacklevel=2,
    )
