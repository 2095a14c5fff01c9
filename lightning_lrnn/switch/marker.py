"""The mark of a drop-in layer in the `state_dict` of every module that contains it.

It is under the layer's own prefix, so that a `state_dict` of any part or of the whole has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["GUARD", "MARKER", "marked", "read", "take", "write"]

MARKER = "made by lightning_lrnn (import lightning_lrnn before loading)"
"""The key. Without this package, strict loading fails on it, and the error shows it."""

GUARD = "weight_ih_l0"
"""A second key, of an empty tensor: a weight that every recurrent layer of PyTorch has.

Without this package, loading that is not strict fails too, on the size of this weight. And if keys
were filtered by name, the remaining one still marks the layer.
"""


def write(state_dict: dict[str, Any], prefix: str, plan: Mapping[str, Any]) -> None:
    """Adds the mark to a `state_dict`.

    Args:
        state_dict: of the layer, or of a module that it is in.
        prefix: of the layer's keys.
        plan: what `Layer.of` reads, and further plain data.
    """
    text = json.dumps(plan, sort_keys=True).encode()
    state_dict[prefix + MARKER] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    state_dict[prefix + GUARD] = torch.empty(0, dtype=torch.uint8)


def marked(state_dict: Mapping[str, Any], prefix: str) -> bool:
    """Whether a `state_dict` has the mark of a layer, or a part of it."""
    return prefix + MARKER in state_dict or _guards(state_dict.get(prefix + GUARD))


def read(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The plan in the mark of a layer; {} if it is missing or cannot be read.

    Its bytes survive averaging of checkpoints, and conversion to 16 bits.
    """
    marker = state_dict.get(prefix + MARKER)
    if not isinstance(marker, Tensor) or marker.is_meta:
        return {}
    try:
        plan = json.loads(bytes(round(value) for value in marker.flatten().tolist()))
    except (OverflowError, TypeError, ValueError):
        return {}
    return plan if isinstance(plan, dict) else {}


def take(state_dict: dict[str, Any], prefix: str) -> None:
    """Removes the mark of a layer."""
    state_dict.pop(prefix + MARKER, None)
    if _guards(state_dict.get(prefix + GUARD)):
        del state_dict[prefix + GUARD]


def _guards(value: Any) -> bool:
    return isinstance(value, Tensor) and value.shape == (0,)
