"""The recurrent layer of a model: a class with options, in Python, in a config, in a checkpoint."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from lightning_lrnn.nn import CELLS
from lightning_lrnn.nn.cell import Cell
from lightning_lrnn.nn.stack import Stack
from lightning_lrnn.nn.torch_rnn import TorchRNN

__all__ = ["KNOWN", "Layer", "LayerClass", "import_named", "is_known", "not_found"]

KNOWN = (*CELLS, "torch.nn.LSTM", "torch.nn.GRU", "torch.nn.RNN")
"""Names of layers, as a config and the command line use them."""
OPTIONS = ("init_args", "dict_kwargs")
"""Keys of a layer's options in a config, and in one that jsonargparse has read."""


class LayerClass(Protocol):
    """A class of recurrent layers, or a `functools.partial` of one, with options.

    The names of the two sizes matter: with `Callable[[int, int], nn.Module]` jsonargparse leaves
    out the first two parameters that it finds, which for `torch.nn.RNN` are others.
    """

    def __call__(self, input_size: int, hidden_size: int) -> nn.Module:
        """Makes a layer with these sizes."""


@dataclass(frozen=True)
class Layer:
    """A class of recurrent layers with its options, all of them plain data.

    Attributes:
        layer_class: the class, called with `input_size` and `hidden_size`.
        options: what else it is called with.
    """

    layer_class: type[nn.Module]
    options: dict[str, Any]

    @classmethod
    def of(cls, rnn: Any, fixed: Mapping[str, tuple[Any, str]] | None = None) -> Layer:
        """Makes a layer from what a user or a checkpoint gives.

        Args:
            rnn: a class, a `functools.partial` of one with keywords, a name, the path of a class,
                or {"class_path": name or path, "init_args": options}.
            fixed: options that the caller fixes, each with its only value, and advice for errors.

        Returns:
            The layer, without the fixed options.

        Raises:
            ValueError: for another `rnn`, an option that is not plain data, or another fixed one.
        """
        rnn_class, options = rnn, {}
        if isinstance(rnn, functools.partial):
            # The command line has a partial of its own function, with the class as last argument.
            rnn_class, options = (rnn.func, *rnn.args)[-1], rnn.keywords
        elif isinstance(rnn, Mapping):
            rnn_class = rnn.get("class_path")
            if others := sorted(map(str, set(rnn) - {"class_path", *OPTIONS})):
                raise ValueError(f"`rnn` has class_path and init_args, but no {', '.join(others)}")
            for name in OPTIONS:
                if not isinstance(rnn.get(name) or {}, Mapping):
                    raise ValueError(f"`rnn`: {name} must be options by name, got {rnn[name]!r}")
            options = {**(rnn.get("init_args") or {}), **(rnn.get("dict_kwargs") or {})}
        if isinstance(rnn_class, str):
            rnn_class = _class(rnn_class)
        if not (isinstance(rnn_class, type) and issubclass(rnn_class, nn.Module)):
            raise ValueError(
                f"`rnn` must be a class of layers, a functools.partial of one with keywords, or a "
                f"name, got {rnn!r}; names are {', '.join(KNOWN)}"
            )
        if issubclass(rnn_class, (Cell, nn.RNNCellBase)):
            raise ValueError(
                f"`rnn`: {rnn_class.__name__} is a cell, which makes single steps: name its layer, "
                f"as QRNN is that of QRNNCell"
            )
        options = dict(options)
        if issubclass(rnn_class, (Stack, nn.RNNBase)):
            options.pop("batch_first", None)
            for name, (only, remedy) in (fixed or {}).items():
                if (value := options.pop(name, only)) != only:
                    raise ValueError(f"`rnn.{name}` must be {only!r} here, got {value!r}: {remedy}")
        return cls(rnn_class, {name: _plain(name, value) for name, value in options.items()})

    @property
    def path(self) -> str:
        """The import path of the class."""
        name = self.layer_class.__qualname__
        if CELLS.get(name) is self.layer_class:
            return f"lightning_lrnn.nn.{name}"
        if getattr(nn, name, None) is self.layer_class:
            return f"torch.nn.{name}"
        return f"{self.layer_class.__module__}.{name}"

    @property
    def directions(self) -> int:
        """Number of directions, 1 or 2; the output has the features of all of them."""
        return 2 if self.options.get("bidirectional") else 1

    def plain(self) -> dict[str, Any]:
        """Plain data that `of` reads: for a config or a checkpoint."""
        return {"class_path": self.path, "init_args": dict(self.options)}

    def make(self, size: int) -> nn.Module:
        """A new layer, batch first, from `size` features to as many.

        Raises:
            ValueError: if the class does not take the options.
        """
        try:
            layer: Any = self.layer_class(size, size, **self.options)
        except TypeError as error:
            raise ValueError(
                f"`rnn`: {self.path} does not take the options {self.options} ({error}); "
                f"help({self.path}) lists those that it has"
            ) from error
        if isinstance(layer, nn.RNNBase):
            return TorchRNN(layer)
        if hasattr(layer, "batch_first"):
            layer.batch_first = True
        module: nn.Module = layer
        return module


def is_known(name: Any) -> bool:
    """Whether a name or path is that of a layer of this package or of `torch.nn`."""
    return isinstance(name, str) and name.removeprefix("lightning_lrnn.nn.") in KNOWN


def import_named(rnn: Any) -> None:
    """Imports the module of a layer of the user's own, which `Layer.of` does not.

    Call it with names from a user, never with names from a checkpoint.

    Args:
        rnn: as `Layer.of` reads it, which raises for names of modules that do not exist.
    """
    path = rnn.get("class_path") if isinstance(rnn, Mapping) else rnn
    module = path.rpartition(".")[0] if isinstance(path, str) else ""
    if module.startswith(".") or not module:
        return
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        # The user's module exists, and an import inside it fails.
        if not f"{module}.".startswith(f"{error.name}."):
            raise


def _class(name: str) -> type[nn.Module]:
    """The layer class of a name or path. Nothing is called, and nothing is imported.

    A path may come from a checkpoint, and a checkpoint from anywhere.
    """
    if name in CELLS:
        return CELLS[name]
    module, _, attribute = name.rpartition(".")
    layer_class = getattr(sys.modules.get(module), attribute, None)
    if module.partition(".")[0] and module not in sys.modules:
        why = not_found(name) or f"its module is not imported; `import {module}` first"
        raise ValueError(f"there is no layer {name!r}: {why}")
    if not (isinstance(layer_class, type) and issubclass(layer_class, nn.Module)):
        raise ValueError(
            f"there is no layer {name!r}; known are {', '.join(KNOWN)}, and by its path any "
            f"torch.nn.Module of a module that is imported"
        )
    return layer_class


def not_found(path: str) -> str:
    """Says that there is no module of a path, "" if there is one; nothing is imported.

    Args:
        path: of a class.
    """
    top = path.partition(".")[0]
    if not top or top in sys.modules or find_spec(top):
        return ""
    return f"no module {top!r} is installed or in the folder {Path.cwd()}"


def _plain(name: str, value: Any) -> Any:
    """A value as plain data: for a checkpoint without pickled classes, a YAML without tags."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    # Options of a surrogate. A dict with a class path would have that class imported and made.
    if isinstance(value, dict) and "class_path" not in value:
        return {k: _plain(name, v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(name, item) for item in value]
    raise ValueError(
        f"`rnn.{name}` must be a number, a word or a list of them, since a checkpoint keeps it, "
        f"got {value!r}"
    )
