"""The options that a checkpoint has, beside those of the command line and of the configs."""

from __future__ import annotations

import enum
import inspect
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning.utilities import rank_zero_info

from lightning_lrnn.cli.fit.words import Words
from lightning_lrnn.modules import RecurrentModule
from lightning_lrnn.modules.checkpoint import CheckpointError
from lightning_lrnn.nn.layer import Layer, is_known

__all__ = ["checkpoint_options"]

PLAIN = (bool, int, float, str, type(None), Path)


def checkpoint_options(
    checkpoint: Mapping[str, Any], path: str, model: Namespace, words: Words
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the options of a model that a checkpoint decides on, and reports differences.

    Nothing that the checkpoint names is imported, and of classes it may name only the one that the
    config names in the same place, or a layer of this package or of `torch.nn`.

    Args:
        checkpoint: its contents.
        path: of the checkpoint, for messages.
        model: the class and the options that were parsed.
        words: which options are typed, and which configured.

    Returns:
        The options to take from the checkpoint; and the checkpoint's values of options that are
        typed with another value.

    Raises:
        CheckpointError: if the checkpoint is of another class, or names one that it may not.
    """
    options = dict(checkpoint.get("hyper_parameters") or {})
    options.pop("_instantiator", None)
    model_class = _imported(model.class_path)
    _check_class(options.pop("_class_path", None), model.class_path, path)
    typed, configured = words.typed_options(), words.configured_options()
    parsed = model.get("init_args") or {}
    is_recurrent = isinstance(model_class, type) and issubclass(model_class, RecurrentModule)
    taken, overruled = {}, {}
    for name, value in options.items():
        config, is_layer = _plain(parsed.get(name)), is_recurrent and name == "rnn"
        same = _same_layer(config, value, model_class) if is_layer else config == _plain(value)
        if same and name in parsed:
            continue
        if name in typed:
            overruled[name] = value
            rank_zero_info(f"{path}: {name} is {_short(config)} as typed, not {_short(value)}")
            continue
        if is_layer:
            _check_layer(value, config, path)
        elif not _is_plain(model_class, name, value):
            raise CheckpointError(
                f"{path} has `{name}` = {_short(value)}, which may name code; say what it shall "
                f"be, with --model.{name}, if it is to be that"
            )
        taken[name] = value
        if name in configured:
            rank_zero_info(
                f"{path}: {name} is {_short(value)}, not {_short(config)} as configured "
                f"(--model.{name} on the command line would be taken)"
            )
    return taken, overruled


def _check_class(named: str | None, configured: str, path: str) -> None:
    if named in (None, configured) or _imported(named) is _imported(configured):
        return
    raise CheckpointError(
        f"{path} is of the model {named!r}, not of {configured}, which is configured; "
        f"give a checkpoint of {configured}, or name the class with --model"
    )


def _plain(value: Any) -> Any:
    """A value with the types that YAML has, so that values can be compared."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    return list(value) if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    """A value as text for a message, cut if it is long."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    words = str(value.get("class_path", value)) if isinstance(value, Mapping) else repr(value)
    inner = value.get("init_args") if isinstance(value, Mapping) else None
    if isinstance(inner, Mapping):
        words += f"({', '.join(f'{k}={v!r}' for k, v in inner.items() if v not in (None, False))})"
    return words if len(words) < 200 else words[:200] + "..."


def _imported(path: Any) -> Any:
    """The class of a path if its module is imported already, else None."""
    if not isinstance(path, str):
        return None
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def _check_layer(value: Any, config: Any, path: str) -> None:
    """Refuses a layer of a checkpoint that is neither configured nor known."""
    named = value.get("class_path") if isinstance(value, Mapping) else value
    own = config.get("class_path") if isinstance(config, Mapping) else config
    if not is_known(named) and named != own:
        raise CheckpointError(
            f"{path} has the layer {named!r}, which is neither configured nor one of this package; "
            f"if it is to be made, say --model.rnn={named}"
        )


def _same_layer(config: Any, value: Any, model_class: type[RecurrentModule]) -> bool:
    """Whether two descriptions are of layers of the same class and options."""
    try:
        layers = [Layer.of(layer, model_class.fixed_options) for layer in (config, value)]
    except ValueError:
        # The error is raised again, with its message, where the layer is made.
        return False
    if layers[0].layer_class is not layers[1].layer_class:
        return False
    parameters = inspect.signature(layers[0].layer_class).parameters
    for name in {*layers[0].options, *layers[1].options}:
        default = parameters[name].default if name in parameters else None
        values = [_plain(layer.options.get(name, default)) for layer in layers]
        known = name in parameters or all(name in layer.options for layer in layers)
        if known and values[0] != values[1]:
            return False
    return True


def _is_plain(model_class: Any, name: str, value: Any) -> bool:
    """Whether jsonargparse makes no object of a value: by the value, or by the option's type."""
    if isinstance(value, (list, tuple)) and all(isinstance(v, (bool, int, float)) for v in value):
        return True
    if value is None or isinstance(value, (bool, int, float)):
        return True
    for base in getattr(model_class, "__mro__", ()):
        try:
            hints = typing.get_type_hints(vars(base).get("__init__"))
        except (TypeError, NameError, AttributeError):
            continue
        if name in hints:
            return _is_data(hints[name])
    return False


def _is_data(hint: Any) -> bool:
    """Whether all values of a type are plain data."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return True
    if origin is typing.Union or origin is types.UnionType:
        return all(_is_data(part) for part in inner)
    if isinstance(origin, type) and inner:
        return not issubclass(origin, type) and all(_is_data(p) for p in inner if p is not ...)
    return hint in PLAIN or (isinstance(hint, type) and issubclass(hint, enum.Enum))
