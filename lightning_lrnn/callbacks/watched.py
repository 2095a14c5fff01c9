"""`WandbLogger.watch` of a model that is switched afterwards: the new parameters are watched."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any

from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

__all__ = ["watch_again", "watched_parameters"]


def watch_again(module: nn.Module, paths: Iterable[str]) -> None:
    """Moves wandb's hooks from the parameters of layers that were replaced to the new ones.

    wandb stores names of logged gradients in the watched module, and looks parameters up at each
    call. If another version does not, a warning says what to do.

    Args:
        module: the model.
        paths: of the layers that were replaced.
    """
    paths = list(paths)
    for prefix, watched in module.named_modules():
        if "_wandb_hook_names" in vars(watched):
            start = f"{prefix}." if prefix else ""
            inside = [path[len(start) :] for path in paths if path.startswith(start)]
            try:
                _move(watched, inside)
            except (AttributeError, KeyError, TypeError) as error:
                rank_zero_warn(
                    f"wandb watches parameters that were replaced ({', '.join(inside)}), and this "
                    f"version of it keeps them otherwise ({error}): call `watch` after the switch, "
                    f"in the module's `on_fit_start` for instance"
                )


def watched_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that wandb watches. Keep references to replaced ones until `watch_again`.

    A parameter's hook, which alone has the logging interval, is deleted with it.
    """
    return [p for m in module.modules() if "_wandb_hook_names" in vars(m) for p in m.parameters()]


def _move(watched: Any, paths: list[str]) -> None:
    names: list[str] = watched._wandb_hook_names
    history = sys.modules["wandb"].run._torch
    for path in paths:
        of_first = re.compile(rf"gradients/(graph_\d+)?{re.escape(path)}\.weight_ih_l0")
        for first in [name for name in names if of_first.fullmatch(name)]:
            start = first.removesuffix("weight_ih_l0")
            handle = history._hook_handles[first]
            hook = handle.hooks_dict_ref()[handle.id]
            (every,) = [c.cell_contents for c in hook.__closure__ if type(c.cell_contents) is list]
            for name in [name for name in names if name.startswith(start)]:
                history.unhook(name)
                names.remove(name)
            for name, parameter in watched.get_submodule(path).named_parameters():
                if parameter.requires_grad:
                    names.append(start + name)
                    history._hook_variable_gradient_stats(parameter, start + name, [*every])
