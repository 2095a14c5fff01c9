"""What the words of a command line name, as far as the parser's result does not say it.

Two questions need the words themselves. They are read here and nowhere else.

- Which class is the model, and which the data? jsonargparse takes options in their order, so it has
  to know the class before an option of that class: in `--model.num_features=1 --model=Forecaster`
  the class comes second. Besides, a default class leaves its options to a class that is named in
  its place, where both have options of the same name. So the class that is named becomes the
  default, before anything is parsed.
- Who names an option of the model? An option on the command line overrules that of a checkpoint, an
  option in a config does not. The result of jsonargparse is one tree, without sources.

Nothing is checked here: the parser reads the same words and explains what is wrong with them.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

__all__ = ["Words"]

CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")


class Words:
    """The classes and the options that the words after `fit` name.

    Args:
        words: options of `fit`, `--name=value` or `--name value`.
    """

    def __init__(self, words: list[str]) -> None:
        self._options: list[tuple[str, str, dict[str, Any]]] = []
        for word, following in pairwise([*words, ""]):
            name, equals, value = word.partition("=")
            value = value if equals else following
            config = _config(value) if name in ("--config", "-c") else {}
            self._options.append((name, value, config))

    def class_path(self, part: str) -> str | None:
        """Returns the first class that the words, or a config that they name, have for a part."""
        for name, value, config in self._options:
            if name in (f"--{part}", f"--{part}.class_path"):
                return _class_path(_loaded(value))
            if (path := _class_path(config.get(part))) is not None:
                return path
        return None

    def typed_options(self) -> set[str]:
        """Returns the options of the model that the words name themselves."""
        options: set[str] = set()
        for name, value, _ in self._options:
            if name == "--model":
                options |= _option_names(_loaded(value))
            elif name.startswith("--model."):
                options |= _named_by(name.removeprefix("--model."), value)
        return options

    def configured_options(self) -> set[str]:
        """Returns the options of the model that the configs name."""
        configs = [config for _, _, config in self._options]
        return {option for config in configs for option in _option_names(config.get("model"))}


def _named_by(path: str, value: str) -> set[str]:
    """The options that `--model.<path> value` names."""
    first, _, rest = path.partition(".")
    if first in ("init_args", "dict_kwargs"):
        if not rest:
            return _option_names({first: _loaded(value)})
        first = rest.partition(".")[0]
    return set() if first in ("class_path", "help") else {first.rstrip("+")}


def _option_names(model: Any) -> set[str]:
    """The options in a tree: those of a class, with or without its name."""
    if not isinstance(model, dict):
        return set()
    names = {str(name) for name in model}
    for part in ("init_args", "dict_kwargs"):
        if isinstance(model.get(part), dict):
            names |= {str(name) for name in model[part]}
    return names.difference(CLASS_KEYS)


def _class_path(part: Any) -> str | None:
    """The class of a part that is a class by itself, or one with its options."""
    path = part.get("class_path") if isinstance(part, dict) else part
    return path if isinstance(path, str) else None


def _config(value: str) -> dict[str, Any]:
    """The config in a file, or in YAML itself; {} if there is none."""
    try:
        value = Path(value).read_text(encoding="utf-8-sig", errors="replace")
    except (OSError, ValueError):
        pass
    config = _loaded(value)
    return config if isinstance(config, dict) else {}


def _loaded(text: str) -> Any:
    """Parses YAML; returns None for what is not YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None
