"""The mark of a switch in a `state_dict`: which layers stand in where, for those who load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lrnn.nn.layer import Layer
from lightning_lrnn.nn.stand_in import stand_in_class, standing_in

__all__ = ["MARKER", "mark", "marked"]

MARKER = "lightning_lrnn.SwitchRNN (load it with lightning_lrnn.load_switched)"
"""The key. Loading where nothing was switched fails on it, and shows it."""


def mark(module: nn.Module) -> None:
    """Lets the `state_dict` of a module name its switch, and loading compare it."""
    if _add not in module._state_dict_hooks.values():
        module.register_state_dict_post_hook(_add)
        module.register_load_state_dict_pre_hook(_compare)


def marked(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The switch that a `state_dict` names: by path what `Layer.of` reads."""
    plan: dict[str, Any] = json.loads(_read(state_dict.get(MARKER)))
    return plan


def _plan(module: nn.Module) -> str:
    """What stands in where, in JSON: by path what `Layer.of` reads."""
    plan = {
        path: {
            **Layer(stand_in_class(m), m.options).plain(),
            "state": "strict" if m.strict_state else "carried",
        }
        for path, m in module.named_modules()
        if standing_in(m)
    }
    return json.dumps(plan, sort_keys=True)


def _add(module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
    text = _plan(module).encode()
    state_dict[prefix + MARKER] = torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _read(marker: Tensor | None) -> str:
    return "{}" if marker is None else bytes(marker.tolist()).decode()


def _compare(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    there, here = _read(state_dict.pop(prefix + MARKER, None)), _plan(module)
    if here != there:
        # Not among `errors`, which count where loading is not strict too.
        missing.append(
            f"recurrent layers switched to {_names(there)}, as in the checkpoint, not to "
            f"{_names(here)}; lightning_lrnn.load_switched makes the switch"
        )


def _names(plan: str) -> str:
    names = {path: at["class_path"].rpartition(".")[2] for path, at in json.loads(plan).items()}
    return ", ".join(f"{name} ({path})" for path, name in names.items()) or "nothing"
