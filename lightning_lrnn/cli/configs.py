"""`lightning-lrnn configs`: the configs of this package, and comparisons under one of them."""

from __future__ import annotations

import itertools
import re
import shutil
import textwrap
from contextlib import ExitStack
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from lightning_lrnn.cli.parser import Parser
from lightning_lrnn.core.checks import UserError
from lightning_lrnn.core.files import write_whole

__all__ = [
    "ConfigError",
    "check_yaml",
    "config_texts",
    "copy",
    "find_config",
    "list_configs",
    "main",
    "read_comparison",
]

FOLDERS = ("comparisons", "sweeps")
KEYS = {"config": str, "rnn": list, "backend": list, "steps": int, "seconds": int}


class ConfigError(UserError):
    """There is no such config, or it cannot be read; the message is one sentence."""


def main(words: list[str]) -> None:
    """Runs `configs list` or `configs copy`."""
    parser = Parser(prog="lightning-lrnn configs")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="print their names")
    listing.set_defaults(run=list_configs)
    copying = actions.add_parser("copy", help="copy one, to edit it")
    copying.add_argument("name", metavar="NAME", help="as `list` prints it")
    copying.add_argument(
        "destination", metavar="DEST", nargs="?", default=".", help="file or folder (%(default)s)"
    )
    copying.add_argument("--force", action="store_true", help="overwrite a file")
    copying.set_defaults(run=copy)
    options = vars(parser.parse_args(words[1:]))
    options.pop("run")(**options)


def list_configs() -> None:
    """Prints the name of each config, and the first sentence of the comment that it begins with."""
    texts = config_texts()
    width = max(map(len, texts), default=0) + 2
    columns = max(shutil.get_terminal_size((100, 24)).columns, 2 * width)
    for name, text in texts.items():
        sentence = _first_sentence(text)
        print(textwrap.fill(f"{name:{width}}{sentence}", columns, subsequent_indent=" " * width))


def _first_sentence(text: str) -> str:
    """The first sentence of the comment at the beginning, without line breaks."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    comment = " ".join(line.lstrip("# ") for line in lines)
    sentence = re.match(r".*?\w[\w)]\.(?= |$)", comment)
    return sentence[0] if sentence else comment


def copy(name: str, destination: str = ".", force: bool = False) -> None:
    """Copies a config.

    Args:
        name: of a config, with or without its suffix.
        destination: a file, or a folder for a file of the config's name.
        force: overwrite a file.

    Raises:
        UserError: if there is no such config, or it cannot be written there.
    """
    texts = config_texts()
    file = name.removesuffix(".yaml") + ".yaml"
    if file not in texts:
        raise UserError(f"there is no config {name}; known are: {', '.join(texts)}")
    target = Path(destination)
    target = target / Path(file).name if target.is_dir() else target
    if target.exists() and not force:
        raise UserError(f"{target} exists; --force overwrites it")
    if not target.parent.is_dir():
        raise UserError(f"there is no folder {target.parent}; make it first")
    try:
        write_whole(target, texts[file])
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror})") from error
    if "/" in file:
        print(f"{target}\nits second line says how to start it")
    else:
        print(f"{target}\ntrain with it: lightning-lrnn fit --config {target}")


def config_texts() -> dict[str, str]:
    """Returns the texts of the configs by name, those in folders last."""
    top = files("lightning_lrnn.configs")
    configs = {file.name: file for file in top.iterdir()}
    for folder in FOLDERS:
        configs |= {f"{folder}/{file.name}": file for file in (top / folder).iterdir()}
    return {
        name: configs[name].read_text(encoding="utf-8")
        for name in sorted(configs, key=lambda name: ("/" in name, name))
        if name.endswith(".yaml")
    }


def find_config(name: str, folder: Path, stack: ExitStack) -> Path:
    """Returns the path of a file, or of a config of the package.

    Args:
        name: a path, or a name of `config_texts` with or without its suffix.
        folder: at which a relative path starts.
        stack: closes what must stay open while the path is used.

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
    """Reads a comparison.

    Returns:
        Its `config` and, as far as it has them, `rnn`, `backend`, `steps` and `seconds`; None for a
        file that is a config itself, and names no other.

    Raises:
        ConfigError: if the file cannot be read, or has other keys or types.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
    check_yaml(text, str(path))
    try:
        comparison = yaml.safe_load(text.decode("utf-8-sig"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(comparison, dict) or "config" not in comparison:
        return None
    for key, value in comparison.items():
        if not isinstance(value, KEYS.get(key, ())):
            keys = ", ".join(f"{name} ({type_.__name__})" for name, type_ in KEYS.items())
            raise ConfigError(f"{path}: a comparison has {keys}, got `{key}: {value}`")
        if isinstance(value, int) and (value is True or value < 1):
            raise ConfigError(f"{path}: `{key}` must be an integer of at least 1, got {value}")
    return comparison


def check_yaml(text: bytes, name: str) -> None:
    """Refuses bytes that are no text, and keys given twice, which YAML's reader takes.

    Args:
        text: of a config.
        name: of the config, for messages.

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
    # The reader itself refuses what is no YAML; the parser of `fit` refuses endless anchors.
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
            if not isinstance(key.value, str):
                continue
            if key.value in lines:
                raise ConfigError(
                    f"{name} has the key {key.value!r} twice, in lines {lines[key.value]} and "
                    f"{line}; leave out one"
                )
            lines[key.value] = line
