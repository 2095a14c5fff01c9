"""The configs that come along, and comparisons, which say what is compared under one of them."""

from __future__ import annotations

from contextlib import ExitStack
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

__all__ = ["ConfigError", "check_yaml", "config_texts", "find_config", "read_comparison"]

FOLDERS = ("comparisons", "sweeps")
KEYS = {"config": str, "rnn": list, "backend": list, "steps": int, "seconds": int}


class ConfigError(Exception):
    """There is no such config, or it cannot be read; the message is one sentence."""


def config_texts() -> dict[str, str]:
    """Name -> text of the configs of the package, those in folders last."""
    top = files("lightning_lrnn.configs")
    found = {file.name: file for file in top.iterdir()}
    for folder in FOLDERS:
        found |= {f"{folder}/{file.name}": file for file in (top / folder).iterdir()}
    return {
        name: found[name].read_text(encoding="utf-8")
        for name in sorted(found, key=lambda name: ("/" in name, name))
        if name.endswith(".yaml")
    }


def find_config(name: str, folder: Path, stack: ExitStack) -> Path:
    """A file, or a config of the package.

    Args:
        name: a path, or a name of `config_texts` with or without its suffix.
        folder: where a relative path starts.
        stack: of what must live as long as the path is used.

    Raises:
        ConfigError: if there is neither.
    """
    if (folder / name).is_file():
        return folder / name
    full = name.removesuffix(".yaml") + ".yaml"
    known = [known for known in config_texts() if not known.startswith("sweeps/")]
    if full not in known:
        raise ConfigError(
            f"there is no config {name}, neither a file nor one of {', '.join(known)}"
        )
    return stack.enter_context(as_file(files("lightning_lrnn.configs").joinpath(full)))


def read_comparison(path: Path) -> dict[str, Any] | None:
    """What a comparison says: `config`, and what it likes of `rnn`, `backend`, `steps`, `seconds`.

    Returns:
        None for a file that is a config itself, which names no other.

    Raises:
        ConfigError: if it cannot be read, or says something else.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
    check_yaml(text, str(path))
    try:
        found = yaml.safe_load(text.decode("utf-8-sig"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or "config" not in found:
        return None
    for key, value in found.items():
        if not isinstance(value, KEYS.get(key, ())):
            wants = ", ".join(f"{name} ({kind.__name__})" for name, kind in KEYS.items())
            raise ConfigError(f"{path}: a comparison has {wants}, got `{key}: {value}`")
        if isinstance(value, int) and (value is True or value < 1):
            raise ConfigError(f"{path}: `{key}` must be an integer of at least 1, got {value}")
    return found


def check_yaml(text: bytes, name: str) -> None:
    """Refuses what YAML's reader takes or breaks on: bytes that are no text, and keys given twice.

    Raises:
        ConfigError: with the name of the file, and the lines.
    """
    try:
        root = yaml.compose(text.decode("utf-8-sig"), yaml.SafeLoader)
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{name} is not UTF-8, by the byte 0x{text[error.start]:02x} in line {line}; save it so"
        ) from error
    # The reader itself tells of what is no YAML; an anchor that contains itself is told elsewhere.
    except (yaml.YAMLError, RecursionError):
        return
    seen, rest = set(), [root]
    while rest:
        node = rest.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            rest += node.value
            continue
        rest += [value for _, value in node.value]
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key.value, str) and lines.setdefault(key.value, line) != line:
                raise ConfigError(
                    f"{name} has the key {key.value!r} twice, in lines {lines[key.value]} and "
                    f"{line}; leave out one"
                )
