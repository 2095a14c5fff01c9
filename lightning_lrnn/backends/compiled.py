"""The compiled code of each kind of device: what `serial` and `scan` have in common."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import torch

from lightning_lrnn.backends import Request

DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
)

_MODULES = {"cpu": "cpu.plain", "cuda": "cuda.launch"}
_GATED = {"cpu": "cpu.gated", "cuda": "cuda.launch"}


@cache
def implementation(device_type: str) -> ModuleType:
    """The module with `forward`, `backward` and `missing` for a kind of device."""
    return importlib.import_module(f"{__package__}.{_MODULES[device_type]}")


@cache
def gated(device_type: str) -> ModuleType:
    """The module with `gated_forward` and `gated_backward` for a kind of device."""
    return importlib.import_module(f"{__package__}.{_GATED[device_type]}")


def fuses(request: Request) -> bool:
    """Wherever there is compiled code it takes gate and readout in."""
    return not missing(request.device.type)


def missing(device_type: str) -> list[str]:
    """Why there is no compiled code for a kind of device here; [] = there is."""
    if device_type not in _MODULES:
        return [f"no compiled code for {device_type} devices (there is for cpu and cuda)"]
    reasons: list[str] = implementation(device_type).missing()
    return reasons


def wrong_dtype(dtype: torch.dtype) -> list[str]:
    """A reason if the recurrence is not defined for a dtype."""
    if dtype in DTYPES:
        return []
    return [f"dtype {dtype} is not one of {', '.join(str(d) for d in DTYPES)}"]
