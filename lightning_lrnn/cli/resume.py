"""What `--ckpt_path` takes up: which file, and which of its options beside those that are typed."""

from __future__ import annotations

import enum
import inspect
import sys
import types
import typing
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace

from lightning_lrnn.cli.configs import check_yaml
from lightning_lrnn.modules import RecurrentModule
from lightning_lrnn.modules.checkpoint import CheckpointError
from lightning_lrnn.nn.layer import KNOWN, Layer

__all__ = ["Said", "configs_in", "last_checkpoint", "loaded", "options_of", "trainer_option"]

PLAIN = (bool, int, float, str, type(None), Path)


class Said:
    """The options of a model by who names them.

    Attributes:
        typed: those on the command line.
        configured: those in its configs.
    """

    def __init__(self, args: list[str]) -> None:
        self.typed: set[str] = set()
        self.configured: set[str] = set()
        for arg, after in pairwise([*args, ""]):
            name, equals, value = arg.partition("=")
            value = value if equals else after
            if name == "--model" or name.startswith("--model."):
                self.typed |= _options(name.removeprefix("--model").lstrip("."), value)
        for config in configs_in(args):
            for part in (config, config.get(args[0])) if isinstance(config, dict) else ():
                if isinstance(part, dict):
                    self.configured |= _in_tree(part.get("model"))


def configs_in(args: list[str]) -> list[Any]:
    """What the configs on a command line contain, each a file or YAML itself."""
    found = []
    for arg, after in pairwise([*args, ""]):
        name, equals, value = arg.partition("=")
        value = value if equals else after
        if name in ("--config", "-c"):
            try:
                content = Path(value).read_bytes()
            except (OSError, ValueError):
                content = value.encode("utf-8", "surrogateescape")
            check_yaml(content, value.splitlines()[0] if value else "--config")
            found.append(loaded(content.decode("utf-8-sig")))
    return found


def trainer_option(args: list[str], name: str) -> Any:
    """An option of the trainer as it was written, in the last place that names it."""
    found = None
    for arg, after in pairwise([*args, ""]):
        option, equals, value = arg.partition("=")
        value = value if equals else after
        if option == f"--trainer.{name}":
            found = loaded(value)
        trees: list[Any] = [{"trainer": loaded(value)}] if option == "--trainer" else []
        if option in ("--config", "-c"):
            trees += [
                part
                for c in configs_in([option, value])
                if isinstance(c, dict)
                for part in (c, c.get(args[0]))
            ]
        for tree in trees:
            trainer = tree.get("trainer") if isinstance(tree, dict) else None
            if isinstance(trainer, dict):
                found = trainer.get(name, found)
    return found


def _options(path: str, value: str) -> set[str]:
    """Options that `--model.<path> value` names."""
    first, _, rest = path.partition(".")
    if first in ("", "init_args", "dict_kwargs") and not rest:
        tree = loaded(value)
        return _in_tree(tree if first == "" else {first: tree})
    name = rest.partition(".")[0] if first in ("init_args", "dict_kwargs") else first
    return set() if name in ("class_path", "help") else {name.rstrip("+")}


def _in_tree(model: Any) -> set[str]:
    if not isinstance(model, dict):
        return set()
    found = {str(name) for name in model}
    for inner in ("init_args", "dict_kwargs"):
        if isinstance(model.get(inner), dict):
            found |= {str(name) for name in model[inner]}
    return found - {"class_path", "init_args", "dict_kwargs"}


def loaded(text: str) -> Any:
    """YAML; None for what is none, which parsing it will tell."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def options_of(
    checkpoint: Mapping[str, Any], path: str, model: Namespace, said: Said
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The options of a model that a checkpoint has the say in.

    Nothing that the checkpoint names is imported, and of classes it may name only the one that the
    config names in the same place, or a layer of this package or of `torch.nn`.

    Args:
        checkpoint: what was read.
        path: where, for messages.
        model: the class and the options that were parsed.
        said: who names which option.

    Returns:
        Options to take from the checkpoint; those that are typed and other than the checkpoint's,
        with what this has; and what differs, a phrase each.

    Raises:
        CheckpointError: if the checkpoint is of another class, or names one that it may not.
    """
    found = dict(checkpoint.get("hyper_parameters") or {})
    found.pop("_instantiator", None)
    named = found.pop("_class_path", None)
    kind = _imported(model.class_path)
    if named is not None and named != model.class_path and _imported(named) is not kind:
        raise CheckpointError(
            f"{path} is of the model {named!r}, not of {model.class_path}, which is configured; "
            f"give a checkpoint of {model.class_path}, or name the class with --model"
        )
    mine = model.get("init_args") or {}
    taken, overruled, told = {}, {}, []
    for name, value in found.items():
        config = _plain(mine.get(name))
        is_layer = name == "rnn" and isinstance(kind, type) and issubclass(kind, RecurrentModule)
        same = _same_layer(config, value, kind) if is_layer else config == _plain(value)
        if same and name in mine:
            continue
        if name in said.typed:
            overruled[name] = value
            told.append(f"{name} is {_short(config)} as typed, not {_short(value)}")
            continue
        if is_layer:
            _check_layer(value, config, path)
        elif not _is_plain(kind, name, value):
            raise CheckpointError(
                f"{path} has `{name}` = {_short(value)}, which may name code; say what it shall "
                f"be, with --model.{name}, if it is to be that"
            )
        taken[name] = value
        if name in said.configured:
            told.append(
                f"{name} is {_short(value)}, not {_short(config)} as configured "
                f"(--model.{name} on the command line would be taken)"
            )
    return taken, overruled, told


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        value = value.as_dict()
    return list(value) if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    if isinstance(value, Namespace):
        value = value.as_dict()
    words = str(value.get("class_path", value)) if isinstance(value, Mapping) else repr(value)
    inner = value.get("init_args") if isinstance(value, Mapping) else None
    if isinstance(inner, Mapping):
        words += f"({', '.join(f'{k}={v!r}' for k, v in inner.items() if v not in (None, False))})"
    return words if len(words) < 200 else words[:200] + "..."


def _imported(path: Any) -> Any:
    """What a path names, if its module is imported; nothing is."""
    if not isinstance(path, str):
        return None
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def _check_layer(value: Any, config: Any, path: str) -> None:
    named = value.get("class_path") if isinstance(value, Mapping) else value
    own = config.get("class_path") if isinstance(config, Mapping) else config
    known = {*KNOWN, *(f"lightning_lrnn.nn.{name}" for name in KNOWN if "." not in name)}
    if named not in known and named != own:
        raise CheckpointError(
            f"{path} has the layer {named!r}, which is neither configured nor one of this package; "
            f"if it is to be made, say --model.rnn={named}"
        )


def _same_layer(config: Any, value: Any, kind: type[RecurrentModule]) -> bool:
    try:
        ours, theirs = Layer.of(config, kind.decided), Layer.of(value, kind.decided)
    except ValueError:
        # Whichever it is that cannot be, it is told where a layer is made of it.
        return False
    if ours.kind is not theirs.kind:
        return False
    parameters = inspect.signature(ours.kind).parameters
    for name in {*ours.options, *theirs.options}:
        default = parameters[name].default if name in parameters else None
        either = [layer.options.get(name, default) for layer in (ours, theirs)]
        known = name in parameters or all(name in layer.options for layer in (ours, theirs))
        if known and _plain(either[0]) != _plain(either[1]):
            return False
    return True


def _is_plain(kind: Any, name: str, value: Any) -> bool:
    """Whether jsonargparse makes no object of it: it has no words, or its type is plain data."""
    if isinstance(value, (list, tuple)) and all(isinstance(v, (bool, int, float)) for v in value):
        return True
    if value is None or isinstance(value, (bool, int, float)):
        return True
    for base in getattr(kind, "__mro__", ()):
        try:
            hints = typing.get_type_hints(vars(base).get("__init__"))
        except (TypeError, NameError, AttributeError):
            continue
        if name in hints:
            return _is_data(hints[name])
    return False


def _is_data(hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return True
    if origin is typing.Union or origin is types.UnionType:
        return all(_is_data(part) for part in inner)
    if isinstance(origin, type) and inner:
        return not issubclass(origin, type) and all(_is_data(p) for p in inner if p is not ...)
    return hint in PLAIN or (isinstance(hint, type) and issubclass(hint, enum.Enum))


def last_checkpoint(trainer: Namespace) -> tuple[Path | None, str]:
    """The newest `last.ckpt` of the runs that go to the same place.

    Args:
        trainer: the trainer's options.

    Returns:
        The file, None if there is none yet; and where it was looked for, in words.
    """
    patterns = _places(trainer)
    found = [file for folder, pattern in patterns for file in folder.glob(pattern)]
    # A run may end, and its files go, while another looks.
    dated = [(file.stat().st_mtime, str(file)) for file in found if file.is_file()]
    where = " and ".join(str(folder / pattern) for folder, pattern in patterns)
    return (Path(max(dated)[1]) if dated else None), where


def _places(trainer: Namespace) -> list[tuple[Path, str]]:
    """Folders, and patterns in them."""
    root = Path(trainer.get("default_root_dir") or ".")
    callbacks = trainer.get("callbacks") or []
    named = []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        inner = (callback.get("init_args") if isinstance(callback, Namespace) else None) or {}
        if str(callback.get("class_path", "")).endswith("ModelCheckpoint") and inner.get("dirpath"):
            named.append((Path(inner["dirpath"]), "last*.ckpt"))
    if named:
        return named
    logger = trainer.get("logger")
    logger = logger[0] if isinstance(logger, list) and logger else logger
    if logger is False:
        return [(root, "checkpoints/last*.ckpt")]
    inner = (logger.get("init_args") if isinstance(logger, Namespace) else None) or {}
    # The name of a WandbLogger is the run's; its folder has the project's.
    name = inner.get("project") or inner.get("name") or "lightning_logs"
    save_dir = Path(inner.get("save_dir") or inner.get("root_dir") or root)
    patterns = ("checkpoints/last*.ckpt", "*/checkpoints/last*.ckpt")
    return [(save_dir / str(name), pattern) for pattern in patterns]
